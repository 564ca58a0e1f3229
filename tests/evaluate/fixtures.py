"""Small evaluation sets, written by hand in the publishers' own formats."""

import json
import zlib
from pathlib import Path

from PIL import Image

from nvlm.evaluate.ground_truth.readers import read_questions
from nvlm.evaluate.params import GroundTruthParams
from nvlm.evaluate.question import Question


def read(directory: Path, reader: str, **fields: str) -> list[Question]:
    return read_questions(directory, GroundTruthParams(reader=reader, fields=fields))


def picture(directory: Path, name: str) -> None:
    path = directory / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # Each name has its own colour: questions of one picture are told by its content.
    Image.new("RGB", (40, 30), zlib.crc32(name.encode()) % 2**24).save(path)


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def coco(directory: Path) -> Path:
    names = {9: "COCO_val2014_000000000009.jpg", 25: "COCO_val2014_000000000025.jpg"}
    for name in names.values():
        picture(directory, name)
    captions = {
        9: ["A red square.", "Something red on a wall."],
        25: ["a dog runs", "the dog is running"],
    }
    write_json(
        directory / "captions_val2014.json",
        {
            "images": [{"id": key, "file_name": name} for key, name in names.items()],
            "annotations": [
                {"id": 10 * key + place, "image_id": key, "caption": caption}
                for key, given in captions.items()
                for place, caption in enumerate(given)
            ],
        },
    )
    return directory


def textvqa(directory: Path) -> Path:
    picture(directory, "0054c91397f2fe05.jpg")
    record = {"image_id": "0054c91397f2fe05", "question_id": 34602, "question": "what number?"}
    data = [record | {"answers": ["42"] * 7 + ["forty two"] * 3}]
    write_json(directory / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": data})
    return directory


def vqav2(directory: Path) -> Path:
    """Two questions of each of two pictures."""
    names = ["COCO_val2014_000000262148.jpg", "COCO_val2014_000000393225.jpg"]
    for name in names:
        picture(directory, name)
    asked = {
        1: ("Is it red?", ["yes"] * 9 + ["no"]),
        2: ("How many?", ["1"] * 4 + ["one"] * 2 + ["2"] * 4),
        3: ("What colour?", ["dark red"] * 2 + ["red"] * 8),
        4: ("Is it a dog?", ["no"] * 10),
    }
    write_json(
        directory / "questions.json",
        [
            {
                "image": names[(key - 1) // 2],
                "question_id": key,
                "question": question,
                "answer": answers,
            }
            for key, (question, answers) in asked.items()
        ],
    )
    return directory


def mmmu(directory: Path) -> Path:
    lines, truth = [], {}
    for key, options, kind, gold in (
        (
            "validation_Art_Theory_1",
            "['red', 'a blue car', \"it's green\"]",
            "multiple-choice",
            "B",
        ),
        ("validation_Art_Theory_2", "['1', '2']", "multiple-choice", "A"),
        ("validation_Math_1", "[]", "open", ["5", "five"]),
    ):
        picture(directory, f"{key}.png")
        lines.append(
            {
                "id": key,
                "question": "What is shown in <image 1> here?",
                "options": options,
                "image_1": f"{key}.png",
                "question_type": kind,
                "answer": gold,
                "subfield": "any",
            }
        )
        truth[key] = {"question_type": kind, "ground_truth": gold}
    path = directory / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(directory / "answer_dict_val.json", truth)
    return directory
