"""Questions with ten people's answers: TextVQA, VQAv2 and OK-VQA.

All are scored by kind of answer as well: VQAv2's yes/no, number and other, told from the commonest
answer where the file has no ``answer_type``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvlm.errors import UserError
from nvlm.evaluate.ground_truth import files
from nvlm.evaluate.question import Question


def read_textvqa(directory: Path) -> list[Question]:
    """TextVQA: ``{"data": [{question_id, image_id, question, answers}]}``, images IMAGE_ID.jpg."""
    path = files.only_file(directory, "*.json")
    data = files.field(files.read_json(path), "data", str(path))
    return _read(directory, path, data, image_key="image_id", answers_key="answers")


def read_vqav2(directory: Path) -> list[Question]:
    """VQAv2 and OK-VQA: the publisher's pair of files, or the recipe's single one.

    The pair: ``*questions.json``, ``{"data_subtype", "questions": [{question_id, image_id,
    question}]}``, and ``*annotations.json``, ``{"annotations": [{question_id, answers: [{answer}],
    answer_type}]}``; images are named COCO_val2014_000000262148.jpg, the middle part being the
    subtype. The recipe: ``[{question_id, image, question, answer}]``, ``image`` a file name.
    """
    if list(directory.glob("*annotations.json")):
        return _read_pair(directory)
    path = files.only_file(directory, "*.json")
    return _read(directory, path, files.read_json(path), image_key="image", answers_key="answer")


def _read_pair(directory: Path) -> list[Question]:
    path = files.only_file(directory, "*questions.json")
    truth_path = files.only_file(directory, "*annotations.json")
    published = files.read_json(path)
    subtype = files.text_field(published, "data_subtype", str(path))
    truth = files.field(files.read_json(truth_path), "annotations", str(truth_path))
    annotations = {
        files.id_field(record, "question_id", str(truth_path)): record
        for record in files.records(truth, str(truth_path))
    }
    data = []
    for record in files.records(files.field(published, "questions", str(path)), str(path)):
        question_id = files.id_field(record, "question_id", str(path))
        if question_id not in annotations:
            raise UserError(f"{truth_path}: question {question_id} has no answers")
        annotation = annotations[question_id]
        where = f"{truth_path}, question {question_id}"
        answers = files.records(files.field(annotation, "answers", where), where)
        image_id = files.id_field(record, "image_id", str(path))
        data.append(
            {
                "question_id": question_id,
                "question": files.field(record, "question", str(path)),
                "image": f"COCO_{subtype}_{image_id:0>12}",
                "answers": [files.field(answer, "answer", where) for answer in answers],
                "answer_type": annotation.get("answer_type"),
            }
        )
    return _read(directory, path, data, image_key="image", answers_key="answers")


def _read(
    directory: Path, path: Path, data: Any, *, image_key: str, answers_key: str
) -> list[Question]:
    images = files.Images(directory)
    questions = []
    for record in files.records(data, str(path)):
        question_id = files.id_field(record, "question_id", str(path))
        where = f"{path}, question {question_id}"
        references = files.answers(files.field(record, answers_key, where), where)
        questions.append(
            Question(
                id=question_id,
                images=(images.path(files.text_field(record, image_key, where)),),
                text=files.text_field(record, "question", where),
                references=references,
                category=str(record.get("answer_type") or _answer_type(references)),
            )
        )
    return files.without_duplicates(questions, path)


def _answer_type(references: Sequence[str]) -> str:
    """VQAv2's three kinds of answer."""
    commonest = Counter(references).most_common(1)[0][0].strip().lower()
    if commonest in ("yes", "no"):
        return "yes/no"
    return "number" if commonest.replace(".", "", 1).isdecimal() else "other"
