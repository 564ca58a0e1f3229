"""Conversations, about an image or none."""

from tests.data.published.layout import (
    JPEG,
    Published,
    lines,
    one_turn,
)

from nvlm.data.records import Dialogue

LLAVA_TURNS = [
    {"from": "human", "value": "What is this?\n<image>"},
    {"from": "gpt", "value": "A cube."},
    {"from": "human", "value": "Which colour?"},
    {"from": "gpt", "value": "Grey."},
]
LLAVA = Dialogue(
    turns=[
        ("human", "What is this?\n<image>"),
        ("gpt", "A cube."),
        ("human", "Which colour?"),
        ("gpt", "Grey."),
    ]
)
CONVERSATIONS = {
    "geoqa_plus": Published(
        {
            "geoqa+.jsonl": lines({"id": 0, "image": "images/0.png", "conversations": LLAVA_TURNS}),
            "images/0.png": JPEG,
        },
        [LLAVA],
    ),
    "sharegpt_4o": Published(
        {
            "image_conversations/gpt-4o.jsonl": lines(
                {"id": 0, "image": "a.jpg", "width": 40, "height": 30, "conversations": LLAVA_TURNS}
            ),
            "images/a.jpg": JPEG,
        },
        [LLAVA],
    ),
    "llava_158k": Published(
        {
            "llava_instruct_150k.json": [
                {"id": "000000033471", "image": "000000033471.jpg", "conversations": LLAVA_TURNS}
            ],
            "train2017/000000033471.jpg": JPEG,
        },
        [LLAVA],
    ),
    "llavar": Published(
        {
            "llavar_instruct_16k.json": [
                {"id": "1", "image": "0001.jpg", "conversations": LLAVA_TURNS}
            ],
            "finetune/0001.jpg": JPEG,
        },
        [LLAVA],
    ),
    "sharegpt": Published(
        {
            "ShareGPT_V3_unfiltered_cleaned_split.json": [
                {
                    "id": "QWJhYvA_0",
                    "conversations": [
                        {"from": "gpt", "value": "...the end of something."},
                        {"from": "human", "value": "Hi"},
                        {"from": "gpt", "value": "Hello"},
                        {"from": "human", "value": "Bye"},
                    ],
                }
            ],
            "slimorca.jsonl": lines(
                {
                    "conversations": [
                        {"from": "system", "value": "Be brief.", "weight": None},
                        {"from": "human", "value": "Hi", "weight": 0.0},
                        {"from": "gpt", "value": "Hello", "weight": 1.0},
                    ]
                }
            ),
        },
        [one_turn("Hi", "Hello"), one_turn("Be brief.\n\nHi", "Hello")],
        [[], []],
    ),
    "alpaca": Published(
        {
            "alpaca_gpt4_data.json": [
                {"instruction": "Add.", "input": "1 and 2", "output": "3"},
                {"instruction": "Greet.", "input": "", "output": "Hi"},
            ]
        },
        [one_turn("Add.\n1 and 2", "3"), one_turn("Greet.", "Hi")],
        [[], []],
    ),
}
