"""Questions about charts, documents, diagrams and mathematics."""

import pyarrow
from tests.data.published.layout import (
    JPEG,
    PNG,
    Published,
    question,
)

from nvlm.data.records import Choice, Dialogue, Question

DOCUMENTS = {
    "ocr_vqa": Published(
        {
            "dataset.json": {
                "1421506": {
                    "imageURL": "http://images.example.org/1421506.jpg",
                    "questions": ["Who wrote this book?", "Is it a comic?"],
                    "answers": ["A. Writer", "No"],
                    "title": "Cubes",
                    "authorName": "A. Writer",
                    "genre": "Reference",
                    "split": 1,
                },
                "1421507": {"questions": ["?"], "answers": ["x"], "split": 3},
                "1421508": {
                    "imageURL": "http://images.example.org/I/51+x.L._SL.gif",
                    "questions": ["Which genre?"],
                    "answers": ["Law"],
                    "split": 1,
                },
            },
            "images/1421506.jpg": JPEG,
            "images/1421508.gif": JPEG,
        },
        [
            question("Who wrote this book?", "A. Writer"),
            question("Is it a comic?", "No"),
            question("Which genre?", "Law"),
        ],
    ),
    "chartqa": Published(
        {
            "ChartQA Dataset/train/train_human.json": [
                {"imgname": "two.png", "query": "How many bars?", "label": "2"}
            ],
            "ChartQA Dataset/train/train_augmented.json": [
                {"imgname": "two.png", "query": "What is the value?", "label": "3.5"}
            ],
            "ChartQA Dataset/train/png/two.png": JPEG,
            "ChartQA Dataset/train/tables/two.csv": "a,b\n",
        },
        [question("How many bars?", "2"), question("What is the value?", "3.5")],
    ),
    "dvqa": Published(
        {
            "train_qa.json": [
                {
                    "question": "How many bars are there?",
                    "question_id": 14440250,
                    "template_id": "structure",
                    "answer": "three",
                    "image": "bar_train_00000006.png",
                    "answer_bbox": [],
                }
            ],
            "images/bar_train_00000006.png": JPEG,
        },
        [question("How many bars are there?", "three")],
    ),
    "plotqa": Published(
        {
            "qa_pairs_V2.json": {
                "qa_pairs": [
                    {
                        "image_index": 5,
                        "qid": "S",
                        "question_string": "What is the maximum?",
                        "answer_bbox": {},
                        "template": "max",
                        "answer": 0.35,
                        "question_id": 0,
                        "type": "line",
                        "answer_id": 0,
                    },
                    {
                        "image_index": 5,
                        "question_string": "Is it?",
                        "answer": "Yes",
                        "question_id": 0,
                    },
                ]
            },
            "png/5.png": JPEG,
        },
        [question("What is the maximum?", "0.35"), question("Is it?", "Yes")],
    ),
    "docvqa": Published(
        {
            "spdocvqa_qas/train_v1.0_withQT.json": {
                "dataset_name": "SP-DocVQA",
                "data": [
                    {
                        "questionId": 337,
                        "question": "what is the date?",
                        "question_types": ["form"],
                        "image": "documents/xnbl0037_1.png",
                        "docId": 279,
                        "ucsf_document_id": "xnbl0037",
                        "ucsf_document_page_no": "1",
                        "answers": ["1/8/93", "1/8/1993"],
                        "data_split": "train",
                    }
                ],
            },
            "spdocvqa_images/xnbl0037_1.png": JPEG,
        },
        [
            Question(
                question="what is the date?", answers=["1/8/93", "1/8/1993"], weights=[0.5, 0.5]
            )
        ],
    ),
    "infographicvqa": Published(
        {
            "infographicsvqa_qas/infographicsVQA_train_v1.0.json": {
                "data": [
                    {
                        "questionId": 65718,
                        "question": "How many?",
                        "image_local_name": "20471.jpeg",
                        "image_url": "https://example.org/a.jpg",
                        "ocr_output_file": "20471.json",
                        "answers": ["3"],
                        "data_split": "train",
                    }
                ]
            },
            "infographicsvqa_images/20471.jpeg": JPEG,
        },
        [question("How many?", "3")],
    ),
    "docmatix": Published(
        {
            "data/train-00000-of-00200.parquet": pyarrow.table(
                {
                    "images": [[{"bytes": PNG, "path": None}, {"bytes": JPEG, "path": None}]],
                    "texts": [
                        [
                            {"user": "What is it?", "assistant": "A form.", "source": "PDFA"},
                            {"user": "Pages?", "assistant": "Two.", "source": "PDFA"},
                        ]
                    ],
                }
            )
        },
        [
            Dialogue(
                turns=[
                    ("human", "<image>\n<image>\nWhat is it?"),
                    ("gpt", "A form."),
                    ("human", "Pages?"),
                    ("gpt", "Two."),
                ]
            )
        ],
        [[PNG, JPEG]],
    ),
    "ai2d": Published(
        {
            "ai2d_test_ids.csv": "2\n17\n",
            "ai2d/questions/0.png.json": {
                "imageName": "0.png",
                "questions": {
                    "What is A in the diagram?": {
                        "abcLabel": True,
                        "answerTexts": ["ears", "nose", "mouth", "face"],
                        "correctAnswer": 3,
                        "questionId": "0.png-1",
                    },
                    "What is it?": {
                        "abcLabel": False,
                        "answerTexts": ["cube", "ball", "cone", "ring"],
                        "correctAnswer": 0,
                        "questionId": "0.png-0",
                    },
                },
            },
            "ai2d/questions/1.png.json": {"imageName": "1.png", "questions": {}},
            "ai2d/questions/2.png.json": {
                "imageName": "2.png",
                "questions": {
                    "Asked in the test?": {
                        "abcLabel": False,
                        "answerTexts": ["yes", "no"],
                        "correctAnswer": 0,
                        "questionId": "2.png-0",
                    }
                },
            },
            "ai2d/images/0.png": JPEG,
            "ai2d/images/2.png": JPEG,
        },
        [Choice(question="What is it?", choices=["cube", "ball", "cone", "ring"], correct=0)],
    ),
    "scienceqa": Published(
        {
            "problems.json": {
                "1": {
                    "question": "?",
                    "choices": ["a"],
                    "answer": 0,
                    "image": None,
                    "split": "train",
                },
                "2": {
                    "question": "Which is it?",
                    "choices": ["ball", "cube"],
                    "answer": 1,
                    "hint": "Count the corners.",
                    "image": "image.png",
                    "task": "closed choice",
                    "grade": "grade2",
                    "split": "train",
                },
                "3": {
                    "question": "?",
                    "choices": ["a"],
                    "answer": 0,
                    "image": "image.png",
                    "split": "test",
                },
            },
            "images/train/2/image.png": JPEG,
        },
        [Choice(question="Count the corners.\nWhich is it?", choices=["ball", "cube"], correct=1)],
    ),
    "clevr_math": Published(
        {
            "clevr-math-train.json": {
                "info": {},
                "questions": [
                    {
                        "template_filename": "subtraction.json",
                        "image_filename": "CLEVR_train_000000.png",
                        "split": "train",
                        "question": "Subtract all balls. How many objects are left?",
                        "answer": 4,
                        "program": [],
                    }
                ],
            },
            "CLEVR_v1.0/images/train/CLEVR_train_000000.png": JPEG,
        },
        [question("Subtract all balls. How many objects are left?", "4")],
    ),
    "tabmwp": Published(
        {
            "tabmwp/problems_train.json": {
                "1": {
                    "question": "What is the sum?",
                    "choices": None,
                    "answer": "12",
                    "unit": None,
                    "table_title": None,
                    "table": "a | 5\nb | 7",
                    "ques_type": "free_text",
                    "split": "train",
                }
            },
            "tabmwp/tables/1.png": JPEG,
        },
        [question("What is the sum?", "12")],
    ),
}
