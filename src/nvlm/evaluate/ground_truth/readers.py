"""The readers by name: what ``ground_truth.reader`` of a task in conf/eval/ may say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nvlm.errors import UserError
from nvlm.evaluate.ground_truth import coco, folder, karpathy, mathvista, mmmu, records, vqa
from nvlm.evaluate.params import RECORDS, GroundTruthParams
from nvlm.evaluate.question import Question

# Formats that a map of fields can't describe.
READERS: dict[str, Callable[[Path], list[Question]]] = {
    "coco": coco.read,
    "folder": folder.read,
    "karpathy": karpathy.read,
    "mathvista": mathvista.read,
    "mmmu": mmmu.read,
    "textvqa": vqa.read_textvqa,
    "vqav2": vqa.read_vqav2,
}


def read_questions(directory: Path, params: GroundTruthParams) -> list[Question]:
    """The questions in ``directory``. Raises UserError, in a sentence, for whatever is amiss."""
    if not directory.is_dir():
        raise UserError(f"{directory} is missing: run dvc repro prepare_eval@{directory.name}")
    if params.reader == RECORDS:
        return records.read(directory, params.fields)
    return READERS[params.reader](directory)
