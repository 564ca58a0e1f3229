"""Evaluation sets that the user has put in place: checked, then linked into the stage's out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nvlm.errors import UserError


def link_official(task: str, source: Path, out: Path) -> None:
    """Check the evaluation set of ``task`` in ``source`` and link its files into ``out``.

    Only the ground truth and the images that it names are taken. Raises UserError naming the file
    if one is missing, is no valid JSON, lacks a field or names an image outside ``images/``.
    """
    files, image_names = _GROUND_TRUTHS[task]
    (out / "images").mkdir()
    for file in files:
        _link(source / file, out / file)
    try:
        names = set(image_names(source))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{source}: {', '.join(files)} not in {task}'s format: {error!r}"
        ) from error
    if not names:
        raise UserError(f"{source}: {', '.join(files)} without a single question")
    for name in sorted(names):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{source}: the image {name!r} should lie in images/")
        (out / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        _link(source / "images" / name, out / "images" / name)


def _captioning(source: Path) -> Iterator[str]:
    captions = _read(source / "captions.json")
    described = {annotation["image_id"] for annotation in captions["annotations"]}
    return (image["file_name"] for image in captions["images"] if image["id"] in described)


def _text_vqa(source: Path) -> Iterator[str]:
    return (f"{question['image_id']}.jpg" for question in _read(source / "questions.json")["data"])


def _vqav2(source: Path) -> Iterator[str]:
    return (question["image"] for question in _read(source / "questions.json"))


def _mmmu(source: Path) -> Iterator[str]:
    truth = _read(source / "answer_dict_val.json")
    for line in (source / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        if question["id"] not in truth:
            raise ValueError(f"no ground truth for {question['id']}")
        yield question["image_1"]


# Task -> the files of its ground truth, and the images that they name.
_GROUND_TRUTHS: dict[str, tuple[tuple[str, ...], Callable[[Path], Iterator[str]]]] = {
    "captioning": (("captions.json",), _captioning),
    "TextVQA": (("questions.json",), _text_vqa),
    "VQAv2": (("questions.json",), _vqav2),
    "MMMU": (("questions.jsonl", "answer_dict_val.json"), _mmmu),
}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _link(source: Path, destination: Path) -> None:
    """Hard-link a file, or copy it from another file system."""
    if not source.is_file():
        raise UserError(f"{source} is missing: put the evaluation set's file there")
    try:
        os.link(source.resolve(), destination)
    except OSError:
        shutil.copyfile(source, destination)
