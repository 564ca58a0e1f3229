"""Captions of, and questions about, natural images."""

from tests.data.published.layout import (
    JPEG,
    PNG,
    Published,
    answers,
    lines,
    question,
    tar,
)

from nvlm.data.records import Caption, Choice, Question

VQA_QUESTION = {"image_id": 9, "question": "Is it grey?", "question_id": 9000}
VQA_TRUTH = {
    "question_type": "is it",
    "multiple_choice_answer": "yes",
    "answers": answers(*["yes"] * 7, "no", *["yes"] * 2),
    "image_id": 9,
    "answer_type": "yes/no",
    "question_id": 9000,
}
VQA_CONTENT = Question(question="Is it grey?", answers=["yes", "no"], weights=[0.9, 0.1])
COCO_IMAGE = "train2014/COCO_train2014_000000000009.jpg"

NATURAL = {
    "table": Published(
        {
            "mine.csv": 'image,question,answer\na.jpg,"What, then?",A cube\nb.jpg,Which?,7\n',
            "a.jpg": JPEG,
            "b.jpg": JPEG,
        },
        [question("What, then?", "A cube"), question("Which?", "7")],
    ),
    "coco": Published(
        {
            "annotations/captions_train2017.json": {
                "info": {"year": 2017},
                "licenses": [{"id": 1, "name": 'a [bracket] and a " quote'}],
                "images": [{"id": 9, "file_name": "000000000009.jpg", "height": 30, "width": 40}],
                "annotations": [
                    {"image_id": 9, "id": 661611, "caption": "Closeup of bins of food."},
                    {"image_id": 9, "id": 661977, "caption": "A meal is presented.\n"},
                ],
            },
            "train2017/000000000009.jpg": JPEG,
        },
        [Caption(caption="Closeup of bins of food."), Caption(caption="A meal is presented.")],
    ),
    "textcaps": Published(
        {
            "TextCaps_0.1_train.json": {
                "dataset_type": "train",
                "data": [
                    {
                        "caption_str": "A sign says stop.",
                        "caption_id": 1,
                        "image_id": "0054c91397f2fe05",
                        "image_path": "train/0054c91397f2fe05.jpg",
                        "reference_strs": ["A sign says stop.", "Stop sign."],
                        "set_name": "train",
                    }
                ],
            },
            "train_images/0054c91397f2fe05.jpg": JPEG,
        },
        [Caption(caption="A sign says stop.")],
    ),
    "img2dataset": Published(
        {
            "00000.tar": tar(
                {
                    "000000000.jpg": JPEG,
                    "000000000.json": b'{"status": "success", "caption": "a cube"}',
                    "000000000.txt": b"a cube",
                    "000000001.jpg": JPEG,
                    "000000001.json": b"{}",
                    "000000001.txt": b"a ball",
                }
            )
        },
        [Caption(caption="a cube"), Caption(caption="a ball")],
    ),
    "vqav2": Published(
        {
            "v2_OpenEnded_mscoco_train2014_questions.json": {
                "info": {},
                "task_type": "Open-Ended",
                "questions": [VQA_QUESTION],
            },
            "v2_mscoco_train2014_annotations.json": {"info": {}, "annotations": [VQA_TRUTH]},
            COCO_IMAGE: JPEG,
        },
        [VQA_CONTENT],
    ),
    "ok_vqa": Published(
        {
            "OpenEnded_mscoco_train2014_questions.json": {"questions": [VQA_QUESTION]},
            "mscoco_train2014_annotations.json": {"annotations": [VQA_TRUTH]},
            COCO_IMAGE: JPEG,
        },
        [VQA_CONTENT],
    ),
    "visual_genome": Published(
        {
            "question_answers.json": [
                {
                    "id": 1,
                    "qas": [
                        {
                            "a_objects": [],
                            "question": "What is it?",
                            "image_id": 1,
                            "qa_id": 986769,
                            "answer": "A cube.",
                            "q_objects": [],
                        }
                    ],
                },
                {"id": 2, "qas": []},
            ],
            "VG_100K/3.jpg": PNG,
            "VG_100K_2/1.jpg": JPEG,
        },
        [question("What is it?", "A cube.")],
    ),
    "gqa": Published(
        {
            "train_balanced_questions.json": {
                "07333408": {
                    "semantic": [],
                    "entailed": ["06333405"],
                    "question": "What is it?",
                    "imageId": "2375429",
                    "isBalanced": True,
                    "answer": "cube",
                    "fullAnswer": "It is a cube.",
                }
            },
            "images/2375429.jpg": JPEG,
        },
        [question("What is it?", "cube")],
    ),
    "a_okvqa": Published(
        {
            "aokvqa_v1p0_train.json": [
                {
                    "split": "train",
                    "image_id": 299207,
                    "question_id": "22MexNkBPpdZGX6sxbxVBH",
                    "question": "What is it?",
                    "choices": ["ball", "cube", "cone", "ring"],
                    "correct_choice_idx": 1,
                    "direct_answers": ["cube"] * 10,
                    "difficult_direct_answer": False,
                    "rationales": ["It has corners."],
                }
            ],
            "train2017/000000299207.jpg": JPEG,
        },
        [Choice(question="What is it?", choices=["ball", "cube", "cone", "ring"], correct=1)],
    ),
    "textvqa": Published(
        {
            "TextVQA_0.5.1_train.json": {
                "data": [
                    {
                        "question": "what does it say?",
                        "image_id": "0054c91397f2fe05",
                        "image_classes": ["Sign"],
                        "question_id": 0,
                        "answers": ["stop", "stop", "halt", "stop"],
                        "set_name": "train",
                    }
                ]
            },
            "train_images/0054c91397f2fe05.jpg": JPEG,
        },
        [Question(question="what does it say?", answers=["stop", "halt"], weights=[0.75, 0.25])],
    ),
    "st_vqa": Published(
        {
            "train_task_3.json": {
                "task_name": "Task 3",
                "data": [
                    {
                        "set_name": "train",
                        "answers": ["STOP"],
                        "dataset": "coco-text",
                        "file_path": "coco-text/COCO_train2014_000000000009.jpg",
                        "question": "What does it say?",
                        "question_id": 20474,
                    }
                ],
            },
            "coco-text/COCO_train2014_000000000009.jpg": JPEG,
        },
        [question("What does it say?", "STOP")],
    ),
    "tallyqa": Published(
        {
            "tallyqa/train.json": [
                {
                    "image": "train2014/COCO_train2014_000000000009.jpg",
                    "answer": 3,
                    "data_source": "imported_vqa",
                    "question_id": 9000,
                    "image_id": 9,
                    "question": "How many bins?",
                },
                {
                    "image": "VG_100K_2/1.jpg",
                    "answer": 0,
                    "issimple": True,
                    "question_id": 30098807,
                    "question": "How many dogs?",
                },
            ],
            "tallyqa/test.json": [],
            COCO_IMAGE: JPEG,
            "VG_100K_2/1.jpg": JPEG,
        },
        [question("How many bins?", "3"), question("How many dogs?", "0")],
    ),
    "visual7w": Published(
        {
            "dataset_v7w_telling.json": {
                "dataset": "visual7w-telling",
                "images": [
                    {
                        "image_id": number,
                        "filename": f"v7w_{number}.jpg",
                        "split": split,
                        "qa_pairs": [
                            {
                                "qa_id": number,
                                "question": "What is it?",
                                "answer": "A cube.",
                                "multiple_choices": ["A ball.", "A cone.", "A ring."],
                                "image_id": number,
                                "type": "what",
                            }
                        ],
                    }
                    for number, split in ((2405722, "train"), (2405723, "val"))
                ],
            },
            "images/v7w_2405722.jpg": JPEG,
        },
        [
            Choice(
                question="What is it?",
                choices=["A ball.", "A cube.", "A cone.", "A ring."],
                correct=1,
            )
        ],
    ),
    "vizwiz": Published(
        {
            "Annotations/train.json": [
                {
                    "image": "VizWiz_train_00000000.jpg",
                    "question": "What is it?",
                    "answers": answers("soup", "soup", "can of soup", "soup"),
                    "answer_type": "other",
                    "answerable": 1,
                }
            ],
            "Annotations/val.json": [],
            "train/VizWiz_train_00000000.jpg": JPEG,
        },
        [Question(question="What is it?", answers=["soup", "can of soup"], weights=[0.75, 0.25])],
    ),
    "super_clevr": Published(
        {
            "superCLEVR_questions_30k.json": {
                "info": {},
                "questions": [
                    {
                        "image_filename": f"superCLEVR_new_{image:06d}.png",
                        "question": asked,
                        "answer": answer,
                        "program": [],
                    }
                    for image, asked, answer in (
                        (0, "Is there a bus?", True),
                        (19999, "How many buses?", 1),
                        (20000, "Is there a car?", False),
                    )
                ],
            },
            "images/superCLEVR_new_000000.png": JPEG,
            "images/superCLEVR_new_019999.png": JPEG,
        },
        [question("Is there a bus?", "yes"), question("How many buses?", "1")],
    ),
    "vsr": Published(
        {
            "train.jsonl": lines(
                {
                    "image": "000000050403.jpg",
                    "image_link": "http://images.example.org/train2017/000000050403.jpg",
                    "caption": "The bear is in the person.",
                    "label": 1,
                    "relation": "in",
                    "vote_true_validator_id": [2],
                },
                {
                    "image": "000000401446.jpg",
                    "caption": "The umbrella is far from the horse.",
                    "label": 0,
                },
            ),
            "train2017/000000050403.jpg": JPEG,
            "val2017/000000401446.jpg": JPEG,
        },
        [
            question("Is this statement true of the image? The bear is in the person.", "yes"),
            question(
                "Is this statement true of the image? The umbrella is far from the horse.", "no"
            ),
        ],
    ),
}
