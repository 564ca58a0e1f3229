"""The formats by name: what ``ground_truth`` of a task in conf/eval/ may say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nvlm.errors import UserError
from nvlm.evaluate.ground_truth import coco, mmmu, vqa
from nvlm.evaluate.question import Question

FORMATS: dict[str, Callable[[Path], list[Question]]] = {
    "coco": coco.read,
    "textvqa": vqa.read_textvqa,
    "vqav2": vqa.read_vqav2,
    "mmmu": mmmu.read,
}


def read_questions(directory: Path, ground_truth: str) -> list[Question]:
    """The questions in ``directory``, whose file is of the format called ``ground_truth``."""
    if not directory.is_dir():
        raise UserError(f"{directory} is missing: run dvc repro prepare_eval@{directory.name}")
    if ground_truth not in FORMATS:
        raise UserError(f"ground_truth: one of {', '.join(FORMATS)}, not {ground_truth!r}")
    return FORMATS[ground_truth](directory)
