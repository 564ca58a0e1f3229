"""Text in images, with and without boxes."""

import json

import pyarrow
from tests.data.published.layout import (
    JPEG,
    PDF,
    PNG,
    Published,
    tar,
)

from nvlm.data.records import Reading

POLYGONS = {
    "gt_0": [
        {
            "transcription": "店铺",
            "points": [[1, 2], [11, 3], [11, 8], [1, 7]],
            "language": "Chinese",
            "illegibility": False,
        },
        {"transcription": "###", "points": [[0, 0], [1, 0], [1, 1]], "illegibility": True},
    ]
}
POLYGONS_CONTENT = Reading(text="店铺", words=["店铺"], boxes=[(1.0, 2.0, 10.0, 6.0)])
READING = {
    "synthdog_en": Published(
        {
            "data/train-00000-of-00084-26dbc51f3d0903b9.parquet": pyarrow.table(
                {
                    "image": [{"bytes": JPEG, "path": "image_0.jpg"}],
                    "ground_truth": ['{"gt_parse": {"text_sequence": "Once upon a time"}}'],
                }
            )
        },
        [Reading(text="Once upon a time", words=[], boxes=[])],
    ),
    "textocr": Published(
        {
            "TextOCR_0.1_train.json": {
                "info": {},
                "imgs": {
                    "a4ea": {
                        "id": "a4ea",
                        "width": 40,
                        "height": 30,
                        "set": "train",
                        "file_name": "train/a4ea.jpg",
                    },
                    "b5fb": {"id": "b5fb", "set": "train", "file_name": "train/b5fb.jpg"},
                },
                "anns": {
                    "a4ea_1": {
                        "id": "a4ea_1",
                        "image_id": "a4ea",
                        "bbox": [1.5, 2, 10, 5],
                        "utf8_string": "STOP",
                        "points": [1, 2, 11, 2, 11, 7, 1, 7],
                        "area": 50,
                    },
                    "a4ea_2": {
                        "id": "a4ea_2",
                        "image_id": "a4ea",
                        "bbox": [0, 0, 1, 1],
                        "utf8_string": ".",
                    },
                    "a4ea_3": {
                        "id": "a4ea_3",
                        "image_id": "a4ea",
                        "bbox": [5, 20, 8, 4],
                        "utf8_string": "here",
                    },
                },
                "imgToAnns": {"a4ea": ["a4ea_1", "a4ea_2", "a4ea_3"]},
            },
            "train_images/a4ea.jpg": JPEG,
        },
        [
            Reading(
                text="STOP here",
                words=["STOP", "here"],
                boxes=[(1.5, 2.0, 10.0, 5.0), (5.0, 20.0, 8.0, 4.0)],
            )
        ],
    ),
    "coco_text": Published(
        {
            "cocotext.v2.json": {
                "cats": {},
                "anns": {
                    "45346": {
                        "mask": [1, 2],
                        "class": "machine printed",
                        "bbox": [1, 2, 3, 4],
                        "image_id": 9,
                        "id": 45346,
                        "language": "english",
                        "utf8_string": "New",
                        "legibility": "legible",
                    },
                    "45347": {
                        "bbox": [1, 2, 3, 4],
                        "image_id": 9,
                        "id": 45347,
                        "utf8_string": "",
                        "legibility": "illegible",
                    },
                    "45348": {
                        "bbox": [1, 2, 3, 4],
                        "image_id": 11,
                        "id": 45348,
                        "legibility": "illegible",
                    },
                },
                "imgs": {
                    "9": {
                        "width": 40,
                        "file_name": "COCO_train2014_000000000009.jpg",
                        "set": "train",
                        "id": 9,
                        "height": 30,
                    },
                    "10": {"file_name": "COCO_train2014_000000000010.jpg", "set": "val", "id": 10},
                    "11": {
                        "file_name": "COCO_train2014_000000000011.jpg",
                        "set": "train",
                        "id": 11,
                    },
                    "12": {
                        "file_name": "COCO_train2014_000000000012.jpg",
                        "set": "train",
                        "id": 12,
                    },
                },
                "imgToAnns": {"9": [45346, 45347], "10": []},
            },
            "train2014/COCO_train2014_000000000009.jpg": JPEG,
        },
        [Reading(text="New", words=["New"], boxes=[(1.0, 2.0, 3.0, 4.0)])],
    ),
    "rects": Published(
        {
            "gt/train_ReCTS_000001.json": {},
            "gt_unicode/train_ReCTS_000001.json": {
                "chars": [{"points": [1, 2, 5, 2, 5, 8, 1, 8], "transcription": "店", "ignore": 0}],
                "lines": [
                    {"points": [1, 2, 11, 3, 11, 8, 1, 7], "transcription": "店铺", "ignore": 0},
                    {"points": [0, 0, 1, 0, 1, 1, 0, 1], "transcription": "###", "ignore": 1},
                ],
            },
            "img/train_ReCTS_000001.jpg": JPEG,
        },
        [Reading(text="店铺", words=["店铺"], boxes=[(1.0, 2.0, 10.0, 6.0)])],
    ),
    "rrc_art": Published(
        {"train_labels.json": POLYGONS, "train_images/gt_0.jpg": JPEG}, [POLYGONS_CONTENT]
    ),
    "rrc_lsvt": Published(
        {
            "train_full_labels.json": POLYGONS,
            "train_full_images_0/gt_1.jpg": PNG,
            "train_full_images_1/gt_0.jpg": JPEG,
        },
        [POLYGONS_CONTENT],
    ),
    "rctw": Published(
        {
            "train_gts/image_1.txt": (
                '\ufeff1,2,11,3,11,8,1,7,0,"店,铺"\r\n0,0,1,0,1,1,0,1,1,"###"\r\n'
                '0,0,1,0,1,1,0,1,0,"6""\r\n0,0,2,0,2,2,0,2,0,"寸"\r\n'
            ),
            "train_images/image_1.jpg": JPEG,
        },
        [
            Reading(
                text='店,铺 6" 寸',
                words=["店,铺", '6"', "寸"],
                boxes=[(1.0, 2.0, 10.0, 6.0), (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 2.0, 2.0)],
            )
        ],
    ),
    "funsd": Published(
        {
            "dataset/training_data/annotations/0000971160.json": {
                "form": [
                    {
                        "box": [84, 109, 136, 119],
                        "text": "COMPOUND",
                        "label": "question",
                        "words": [{"box": [84, 109, 136, 119], "text": "COMPOUND"}],
                        "linking": [[0, 37]],
                        "id": 0,
                    },
                    {"box": [1, 2, 3, 4], "text": "", "label": "other", "words": [], "id": 1},
                ]
            },
            "dataset/training_data/images/0000971160.png": JPEG,
        },
        [Reading(text="COMPOUND", words=["COMPOUND"], boxes=[(84.0, 109.0, 52.0, 10.0)])],
    ),
    "sroie": Published(
        {
            "0325updated.task1train(626p)/X00016469612.txt": (
                "72,25,326,25,326,64,72,64,TAN WOON YANN\r\n"
                "50,82,440,82,440,121,50,121,NO.5, JALAN 1,234.00\r\n\r\n"
            ),
            "0325updated.task1train(626p)/X00016469612.jpg": JPEG,
        },
        [
            Reading(
                text="TAN WOON YANN NO.5, JALAN 1,234.00",
                words=["TAN WOON YANN", "NO.5, JALAN 1,234.00"],
                boxes=[(72.0, 25.0, 254.0, 39.0), (50.0, 82.0, 390.0, 39.0)],
            )
        ],
    ),
    "iiit5k": Published(
        {
            "train_label.txt": "train/1009_2.png You\ntrain/1017_1.png RESORT\n",
            "IIIT5K/train/1009_2.png": JPEG,
            "IIIT5K/train/1017_1.png": JPEG,
        },
        [Reading(text=word, words=[], boxes=[]) for word in ("You", "RESORT")],
    ),
    "pdfa_eng_wds": Published(
        {
            "pdfa-eng-train-0000.tar": tar(
                {
                    "2998218.json": json.dumps(
                        {
                            "pages": [
                                {
                                    "words": {"text": ["Page"], "bbox": [[0, 0, 1, 1]]},
                                    "lines": {
                                        "text": [f"Page {page}"],
                                        "bbox": [[0.25, 0.5, 0.5, 0.1]],
                                        "score": [1.0],
                                    },
                                    "images_bbox": [],
                                }
                                for page in (1, 2)
                            ]
                            + [{"words": {"text": []}, "lines": {"text": [], "bbox": []}}]
                        }
                    ).encode(),
                    "2998218.pdf": PDF,
                }
            )
        },
        [
            Reading(text=f"Page {page}", words=[f"Page {page}"], boxes=[(0.25, 0.5, 0.5, 0.1)])
            for page in (1, 2)
        ],
        [[], []],  # rendered, see the test of its own
    ),
}
