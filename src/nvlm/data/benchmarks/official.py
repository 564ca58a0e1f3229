"""Evaluation sets as their publishers ship them: checked, then linked into the stage's out.

A set is a directory that the user puts in place: the publisher's own ground truth
(``GROUND_TRUTH``) beside ``images/``. What the files hold, and which images belong to the set, is
said by the task's reader alone (nvlm.evaluate.ground_truth); the stage hands it in, since this
package lies below.

The Hub's Parquet files, which hold the images too, are unpacked into what the readers read.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from nvlm.data.published.rows import read_rows
from nvlm.data.records import BadRecord
from nvlm.errors import UserError

IMAGES = "images"
GROUND_TRUTH = ("*.json", "*.jsonl", "prompt.txt")
# At the top, or one folder a subject (MMMU) or a split (RealWorldQA), as `hf download` lays them.
PARQUET = ("*.parquet", "*/*.parquet")
UNPACKED = "questions.jsonl"

# The images that the questions of a directory show; UserError says what is wrong with it.
ImagesOf = Callable[[Path], Iterable[Path]]


def link_official(source: Path, out: Path, images_of: ImagesOf) -> None:
    """Check the evaluation set in ``source`` and link it into the directory ``out``.

    Taken are the ground truth and, of the images, those that ``images_of`` names. ``images/`` and
    the ground truth may be links to where the user keeps them; a link among the images, which an
    archive may have brought, may not lead out of their directory. Raises UserError if there is no
    ground truth, if ``images_of`` finds a fault, or for such a link.
    """
    truth = [path for pattern in GROUND_TRUTH for path in sorted(source.glob(pattern))]
    tables = [path for pattern in PARQUET for path in sorted(source.glob(pattern))]
    if not truth and not tables:
        raise UserError(
            f"{source} holds no ground truth ({', '.join(GROUND_TRUTH)} or Parquet): put the "
            f"publisher's files there, and its images in {source / IMAGES}"
        )
    for path in truth:
        _link(path, out / path.name)
    if tables:
        _unpack(tables, out)
        try:
            list(images_of(out))
        except UserError as error:
            # The user knows the source, and not the directory that is about to vanish.
            raise UserError(str(error).replace(str(out), f"{source} (unpacked)")) from error
        return
    for path in tqdm(sorted(set(images_of(source))), "images", disable=None, delay=2):
        name = path.relative_to(source)
        top = source / IMAGES if name.parts[0] == IMAGES else source
        if not path.resolve().is_relative_to(top.resolve()):
            raise UserError(f"{path} is a link that leads out of {top}: put the image itself there")
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        _link(path, out / name)


def _link(source: Path, destination: Path) -> None:
    """Hard-link a file, or copy it from another file system."""
    try:
        os.link(source.resolve(), destination)
    except OSError:
        shutil.copyfile(source, destination)


def _unpack(tables: Iterable[Path], out: Path) -> None:
    """Write the rows of Parquet files as JSON lines, and the images in them as files."""
    (out / IMAGES).mkdir()
    number = 0
    with (out / UNPACKED).open("w", encoding="utf-8") as lines:
        for row in tqdm(_rows(tables), "questions", disable=None, delay=2):
            named = {
                field: _without_images(value, out / IMAGES, f"{number:06d}_{field}")
                for field, value in row.items()
            }
            # What JSON has no form for, such as a date, is no question's field.
            lines.write(json.dumps(named, ensure_ascii=False, default=str) + "\n")
            number += 1


def _rows(tables: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for table in tables:
        for located in read_rows(table, ""):
            if isinstance(located, BadRecord):
                raise UserError(f"{located.name}: {located.reason}")
            # The fields with an underscore in front are read_rows' own.
            yield {name: value for name, value in located.row.items() if name[0] != "_"}


def _without_images(value: Any, directory: Path, stem: str) -> Any:
    """``value`` with the Hub's images, ``{"bytes", "path"}``, replaced by the names of new files.

    Files are named by place: publishers repeat names, and a name of theirs might lead anywhere.
    """
    if isinstance(value, list):
        return [
            _without_images(item, directory, f"{stem}_{place}") for place, item in enumerate(value)
        ]
    if not isinstance(value, dict) or value.keys() != {"bytes", "path"}:
        return value
    if not value["bytes"]:
        raise UserError(f"the image {stem} is not in the Parquet file, only its path is")
    try:
        with Image.open(io.BytesIO(value["bytes"])) as image:
            name = f"{stem}.{str(image.format).lower()}"
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"the image {stem} in the Parquet file can't be read") from error
    (directory / name).write_bytes(value["bytes"])
    return name
