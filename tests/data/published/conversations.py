"""Conversations, about an image or none."""

import pyarrow
from tests.data.published.layout import (
    JPEG,
    Published,
    lines,
    one_turn,
    zipped,
)

from nvlm.data.records import Dialogue


def table(row):
    return pyarrow.Table.from_pylist([row])


def listed(row):
    return [row]


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
    "llava": Published(
        {
            "mine.json": [{"id": "0", "image": "pictures/0.jpg", "conversations": LLAVA_TURNS}],
            "pictures/0.jpg": JPEG,
        },
        [LLAVA],
    ),
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
            "images.zip": zipped({"mnt/petrelfs/wangwenhai/workspace_cef/4o/image/a.jpg": JPEG}),
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
            "llava_instruct_150k_llavar_16k.json": [
                {"id": "000000033471", "image": "000000033471.jpg", "conversations": []},
                {"id": "100000000001", "image": "100000000001.jpg", "conversations": LLAVA_TURNS},
            ],
            "finetune.zip": zipped({"100000000001.jpg": JPEG}),
        },
        [LLAVA],
    ),
    "llava_pretrain": Published(
        {
            "blip_laion_cc_sbu_558k.json": [
                {
                    "id": "004539375",
                    "image": "00453/004539375.jpg",
                    "conversations": [
                        {"from": "human", "value": "Render a clear and concise summary.\n<image>"},
                        {"from": "gpt", "value": "a cube"},
                    ],
                }
            ],
            "images.zip": zipped({"00453/004539375.jpg": JPEG}),
        },
        [one_turn("Render a clear and concise summary.\n<image>", "a cube")],
    ),
    # Publishers put other forms and languages of the same beside the wanted file.
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
            "ShareGPT_V3_unfiltered_cleaned_split_no_imsorry.json": [{"conversations": []}],
            "dataset_infos.json": {},
        },
        [one_turn("Hi", "Hello")],
        [[]],
    ),
    "slimorca": Published(
        {
            "oo-labeled_correct.gpt4.sharegpt.jsonl": lines(
                {
                    "conversations": [
                        {"from": "system", "value": "Be brief.", "weight": None},
                        {"from": "human", "value": "Hi", "weight": 0.0},
                        {"from": "gpt", "value": "Hello", "weight": 1.0},
                    ]
                }
            ),
        },
        [one_turn("Be brief.\n\nHi", "Hello")],
        [[]],
    ),
    "evolinstruct": Published(
        {
            "WizardLM_evol_instruct_V2_143k.json": [
                {
                    "idx": "1",
                    "conversations": [
                        {"from": "human", "value": "Hi"},
                        {"from": "gpt", "value": "Hello"},
                    ],
                }
            ]
        },
        [one_turn("Hi", "Hello")],
        [[]],
    ),
    "alpaca_gpt4": Published(
        {
            "alpaca_gpt4_data.json": [
                {"instruction": "Add.", "input": "1 and 2", "output": "3"},
                {"instruction": "Greet.", "input": "", "output": "Hi"},
            ],
            "alpaca_gpt4_data_zh.json": [{"instruction": "?", "input": "", "output": "!"}],
        },
        [one_turn("Add.\n1 and 2", "3"), one_turn("Greet.", "Hi")],
        [[], []],
    ),
    **{
        name: Published(
            {file: make({asked: "Hi", answered: "Hello", **others})},
            [one_turn("Hi", "Hello")],
            [[]],
        )
        for name, file, make, asked, answered, others in (
            ("ultrainteract", "0000_sft.parquet", table, "instruction", "response", {"id": "0"}),
            (
                "orca_math_word_problems",
                "data/train-00000-of-00001.parquet",
                table,
                "question",
                "answer",
                {},
            ),
            ("mathinstruct", "MathInstruct.json", listed, "instruction", "output", {"source": "x"}),
            (
                "metamath",
                "MetaMathQA-395K.json",
                listed,
                "query",
                "response",
                {"type": "GSM_AnsAug", "original_question": "?"},
            ),
            (
                "glaive_code_assistant",
                "c9bc9129-eba0-4b10-8292-4ae70fc7fa0d.json",
                listed,
                "question",
                "answer",
                {},
            ),
            (
                "magicoder",
                "data-oss_instruct-decontaminated.jsonl",
                lines,
                "problem",
                "solution",
                {"lang": "python", "seed": "x"},
            ),
            ("wizardcoder", "EvolInstruct-Code-80k.json", listed, "instruction", "output", {}),
        )
    },
    "gpteacher": Published(
        {
            f"{name}.json": [{"instruction": "Greet.", "input": "", "response": name}]
            for name in (
                "Instruct/gpt4-instruct-dedupe-only-dataset",
                "Instruct/gpt4-instruct-similarity-0.9-dataset",
                "Roleplay/roleplay-simple-deduped-roleplay-instruct",
                "Roleplay Supplemental/roleplay-instruct-v2.1",
                "Codegen/codegen-instruct",
                "Toolformer/toolformer-dedupe-only-dataset",
                "Toolformer/toolformer-similarity-0.9-dataset",
            )
        },
        [
            one_turn("Greet.", "Instruct/gpt4-instruct-dedupe-only-dataset"),
            one_turn("Greet.", "Roleplay/roleplay-simple-deduped-roleplay-instruct"),
            one_turn("Greet.", "Roleplay Supplemental/roleplay-instruct-v2.1"),
            one_turn("Greet.", "Codegen/codegen-instruct"),
            one_turn("Greet.", "Toolformer/toolformer-dedupe-only-dataset"),
        ],
        [[]] * 5,
    ),
}
