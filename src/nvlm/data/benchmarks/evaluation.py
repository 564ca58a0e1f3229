"""Evaluation sets: official ones as they are, or small ones of held-out data in their formats.

At the full scale each benchmark is fetched, or put in place, and ``official`` links it. At the
smoke scale four are composed of held-out pictures and scans (``packaged``), in the formats that
Megatron's evaluation scripts read (examples/multimodal/evaluation):

- captioning: ``captions.json``, COCO's ``{"images": [{id, file_name}], "annotations": [{id,
  image_id, caption}]}``; a file's name ends with its id after the last ``_``.
- TextVQA: ``questions.json``, ``{"data": [{image_id, question_id, question, answers}]}``; the file
  is ``IMAGE_ID.jpg``.
- VQAv2: ``questions.json``, ``[{image, question_id, question, answer}]``, ``answer`` being a list.
- MMMU: ``questions.jsonl`` with the Hub's fields (``options`` is a list written as text and
  ``image_1`` a file's name) and ``answer_dict_val.json``, ``{id: {question_type, ground_truth}}``.

Images lie in ``images/``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from nvlm.atomic import atomic_directory
from nvlm.data.benchmarks.official import IMAGES, TRUTH, ImagesOf, link_official
from nvlm.data.packaged import easy_vqa
from nvlm.data.packaged.composed import choice_record, strip_record
from nvlm.data.records import Choice, Question
from nvlm.errors import UserError
from nvlm.fetch.manifest import directory_of, why_missing
from nvlm.model.prompts import LETTERS

ANNOTATORS = 10  # answers a question of VQAv2 and TextVQA
SOURCES = ("packaged", "official")


@dataclass(frozen=True, kw_only=True)
class EvaluationParams:
    """One task of conf/data."""

    source: str  # packaged: held-out data that packages bring along; official: the publisher's
    # Path that the stage waits for; for "official" the manifest of the fetched source with the
    # ground truth (nvlm.data.published.sources), or the directory that a person has laid out.
    requires: str
    limit: int | None  # questions to compose; null for an official set, which is taken whole
    # Of an official set: patterns of the ground truth's files, which keep its splits apart.
    truth: list[str] = field(default_factory=lambda: list(TRUTH))
    images: str = ""  # manifest or directory, likewise, that has the pictures; "" = there too
    pictures: str = IMAGES  # their folder there, or the pattern of Parquet files that hold them
    seed: int = 0  # of packaged sets

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source: {self.source!r} should be one of {', '.join(SOURCES)}")
        if (self.limit is None) != (self.source == "official"):
            raise ValueError("limit: a number for a packaged set, null for an official one")


def prepare_evaluation(task: str, params: EvaluationParams, out: Path, images_of: ImagesOf) -> None:
    """Write the evaluation set of ``task`` to ``out``, or nothing if that fails.

    ``images_of`` reads an official set, and says what is wrong with it. Raises UserError for one
    that can't be had.
    """
    official = params.source == "official"
    if official and (reason := why_missing(params.requires, params.images)):
        raise UserError(f"data.eval.{task}: {reason}")
    with atomic_directory(out) as partial:
        if official:
            pictures = directory_of(params.images or params.requires) / params.pictures
            source = directory_of(params.requires)
            link_official(source, partial, images_of, params.truth, pictures)
        else:
            if task not in PACKAGED:
                raise UserError(f"no packaged data for {task!r}, only for {', '.join(PACKAGED)}")
            assert params.limit is not None
            (partial / "images").mkdir()
            PACKAGED[task](partial, params.limit, np.random.default_rng(params.seed))


def _captioning(out: Path, limit: int, rng: np.random.Generator) -> None:
    """Held-out pictures, each with five reference captions."""
    descriptions = easy_vqa.descriptions("test")
    images, annotations = [], []
    for image_id in sorted(_sample(rng, list(descriptions), limit, "described test pictures")):
        images.append({"id": image_id, "file_name": _copy_picture(out, image_id)})
        annotations += [
            {"image_id": image_id, "caption": caption}
            for caption in descriptions[image_id].captions
        ]
    numbered = [{"id": number, **annotation} for number, annotation in enumerate(annotations)]
    _write_json(out / "captions.json", {"images": images, "annotations": numbered})


def _text_vqa(out: Path, limit: int, rng: np.random.Generator) -> None:
    """Strips of two to four held-out digits to read."""
    data = []
    for number in tqdm(range(limit), disable=None):
        record = strip_record(rng, "test", fewest=2, suffix="")
        assert isinstance(record.content, Question)
        image_id = f"digits_{number:06d}"
        with Image.open(io.BytesIO(record.image)) as strip:
            # TextVQA's pictures are JPEG files; this quality leaves no visible trace.
            strip.save(out / "images" / f"{image_id}.jpg", quality=95, subsampling=0)
        data.append(
            {
                "image_id": image_id,
                "question_id": number,
                "question": record.content.question,
                "answers": [*record.content.answers] * ANNOTATORS,
            }
        )
    _write_json(out / "questions.json", {"data": data})


def _vqav2(out: Path, limit: int, rng: np.random.Generator) -> None:
    """easy-VQA's own test questions."""
    questions = easy_vqa.questions("test")
    data = []
    for position in sorted(_sample(rng, range(len(questions)), limit, "test questions")):
        asked = questions[position]
        data.append(
            {
                "image": _copy_picture(out, asked.image_id),
                "question_id": position,
                "question": asked.question,
                "answer": [asked.answer] * ANNOTATORS,
            }
        )
    _write_json(out / "questions.json", data)


def _mmmu(out: Path, limit: int, rng: np.random.Generator) -> None:
    """Multiple-choice questions about held-out pictures and digits."""
    lines, truth = [], {}
    for number in tqdm(range(limit), disable=None):
        record = choice_record(rng, "test")
        assert isinstance(record.content, Choice)
        subfield = "Digits" if record.provenance.source == "digits" else "Shapes"
        question_id = f"validation_{subfield}_{number}"
        file_name = f"{question_id}.png"
        (out / "images" / file_name).write_bytes(record.image)
        lines.append(
            {
                "id": question_id,
                "question": f"<image 1> {record.content.question}",
                "options": str(record.content.choices),
                "image_1": file_name,
                "question_type": "multiple-choice",
                "subfield": subfield,
            }
        )
        truth[question_id] = {
            "question_type": "multiple-choice",
            "ground_truth": LETTERS[record.content.correct],
        }
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / "questions.jsonl").write_text(text, encoding="utf-8")
    _write_json(out / "answer_dict_val.json", truth)


PACKAGED: dict[str, Callable[[Path, int, np.random.Generator], None]] = {
    "captioning": _captioning,
    "TextVQA": _text_vqa,
    "VQAv2": _vqav2,
    "MMMU": _mmmu,
}


def _sample(rng: np.random.Generator, items: Any, limit: int, what: str) -> list[int]:
    """``limit`` different ``items`` in random order; UserError if there are not so many."""
    if limit > len(items):
        raise UserError(f"limit: there are {len(items)} {what}, not {limit}")
    return [int(item) for item in rng.permutation(items)[:limit]]


def _copy_picture(out: Path, image_id: int) -> str:
    """Copy a test picture to ``images/`` under a name in COCO's style, which is returned."""
    name = f"easy_vqa_test_{image_id:012d}.png"
    (out / "images" / name).write_bytes(easy_vqa.image_paths("test")[image_id].read_bytes())
    return name


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
