"""Questions about charts, documents, diagrams and mathematics."""

import pyarrow
from tests.data.published.layout import (
    JPEG,
    PNG,
    Published,
    lines,
    one_turn,
    question,
)

from nvlm.data.records import Choice, Dialogue, Question


def downstream(name, pages):
    """A row of mPLUG's mix for the dataset ``name``, and one of another."""
    names = [f"./imgs/{name}/{page}.png" for page in range(pages)]
    messages = [
        {"role": "user", "content": "<|image|>" * pages + "How many?"},
        {"role": "assistant", "content": "2"},
    ]
    return Published(
        {
            "train.jsonl": lines(
                {"image": names, "messages": messages, "task_name": "qa", "dataset_name": name},
                {"image": ["./imgs/ChartQA/0.png"], "messages": [], "dataset_name": "ChartQA"},
            ),
            **{name.removeprefix("./"): JPEG for name in names},
        },
        [one_turn("<image>" * pages + "How many?", "2")],
        [[JPEG] * pages],
    )


DOCUMENTS = {
    "ocr_vqa": Published(
        {
            "data/train-00000-of-00016-7de80f046ddc3f89.parquet": pyarrow.table(
                {
                    "image": [{"bytes": JPEG, "path": None}],
                    "image_id": ["1421506"],
                    "questions": [["Who wrote this book?", "Is it a comic?"]],
                    "answers": [["A. Writer", "No"]],
                    "ocr_tokens": [["CUBES"]],
                    "title": ["Cubes"],
                    "set_name": ["train"],
                }
            )
        },
        [question("Who wrote this book?", "A. Writer"), question("Is it a comic?", "No")],
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
            "qa/train_qa.json": [
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
            "qa_pairs_v2.json": {
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
        [question("What is the maximum?", "0.35")],  # one row in eight,
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
    "interleaved": Published(
        {
            "dvqa/train-00000-of-00200.parquet": pyarrow.table(
                {
                    "images": [[{"bytes": PNG, "path": None}, {"bytes": JPEG, "path": None}]],
                    "texts": [
                        [
                            {"user": "What is it?", "assistant": "A form.", "source": "PDFA"},
                            {"user": "Pages?", "assistant": "Two.", "source": "PDFA"},
                        ]
                    ],
                    "relevance_ratings": [[5, 4]],
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
    "onevision": Published(
        {
            "UniGeo(MathV360K)/train-00000-of-00001.parquet": pyarrow.table(
                {
                    "id": ["0", "1"],
                    "image": [{"bytes": JPEG, "path": "0.png"}, None],
                    "conversations": [
                        [
                            {"from": "human", "value": "<image>\nWhich angle?"},
                            {"from": "gpt", "value": "45"},
                        ],
                        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
                    ],
                    "data_source": ["unigeo", "text"],
                }
            )
        },
        [one_turn("<image>\nWhich angle?", "45"), one_turn("Hi", "Hello")],
        [[JPEG], []],
    ),
    "wikitablequestions": downstream("WikiTableQuestions", pages=1),
    "dude": downstream("DUDE", pages=2),
    "screenqa": Published(
        {
            "train.json": [
                {
                    "image_id": "0",
                    "image_width": 1080,
                    "image_height": 1920,
                    "question": "What is the name?",
                    "ground_truth": [
                        {
                            "full_answer": "The name is Cube.",
                            "ui_elements": [{"text": "Cube", "bounds": [1, 2, 3, 4]}],
                        },
                        {"full_answer": "It is Cube.", "ui_elements": []},
                    ],
                }
            ],
            "combined/0.jpg": JPEG,
        },
        [
            Question(
                question="What is the name?",
                answers=["The name is Cube.", "It is Cube."],
                weights=[0.5, 0.5],
            )
        ],
    ),
    "geometry3k": Published(
        {
            "train/7/data.json": {
                "problem_text": "Find x.",
                "choices": ["2", "4", "6", "8"],
                "answer": "C",
                "precise_value": [2.0, 4.0, 6.0, 8.0],
                "problem_type_graph": ["Triangle"],
            },
            "train/7/logic_form.json": {},
            "train/7/img_diagram.png": JPEG,
        },
        [Choice(question="Find x.", choices=["2", "4", "6", "8"], correct=2)],
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
            "data/tabmwp/problems_train.json": {
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
            "data/tabmwp/tables/1.png": JPEG,
        },
        [question("What is the sum?", "12")],
    ),
}
