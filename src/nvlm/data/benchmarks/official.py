"""Evaluation sets as their publishers ship them: checked, then linked into the stage's out.

A set is a directory that the user puts in place, the publisher's own ground truth (``TRUTH``)
beside ``images/``, or a source that was fetched, of which configuration names the files of the
split to score, and the pictures, which may lie in another source. What the files hold, and which
images belong to the set, is said by the task's reader alone (nvlm.evaluate.ground_truth); the stage
hands it in, since this package lies below.

The Hub's Parquet files, which hold the images too, are unpacked into what the readers read.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
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
TRUTH = (*GROUND_TRUTH, *PARQUET)
TABLE = ".parquet"
UNPACKED = "questions.jsonl"
NAME = "filename"  # the column of a picture's name, where the ground truth is apart

# The images that the questions of a directory show; UserError says what is wrong with it.
ImagesOf = Callable[[Path], Iterable[Path]]


def link_official(
    source: Path,
    out: Path,
    images_of: ImagesOf,
    truth: Sequence[str] = TRUTH,
    pictures: Path | None = None,
) -> None:
    """Check the evaluation set in ``source`` and link it into the directory ``out``.

    Taken are the files that match the patterns ``truth`` and, of the images, those that
    ``images_of`` names. Images lie in the folder ``pictures`` (none = ``images/`` in ``source``),
    or in Parquet files of that pattern, which name each in a column ``filename``. The folder and
    the ground truth may be links to where the user keeps them; a link among the images, which an
    archive may have brought, may not lead out of their directory. Raises UserError if there is no
    ground truth, if ``images_of`` finds a fault, or for such a link.
    """
    pictures = pictures or source / IMAGES
    found = [path for pattern in truth for path in sorted(source.glob(pattern))]
    if not found:
        raise UserError(
            f"{source} holds no ground truth ({', '.join(truth)}): put the publisher's files "
            f"there, and its images in {pictures}"
        )
    tables = [path for path in found if path.suffix == TABLE]
    for path in found:
        if path.suffix != TABLE:
            _link(path, out / path.name)
    if tables:
        _unpack(tables, out)
        _images_of(images_of, out, {out: f"{source} (unpacked)"})
    elif pictures.suffix == TABLE:
        _unpack_pictures(pictures, out / IMAGES)
        used = _images_of(images_of, out, {out / IMAGES: str(pictures), out: str(source)})
        for path in (out / IMAGES).iterdir():
            if path not in used:
                path.unlink()
    elif pictures == source / IMAGES and all(path.parent == source for path in found):
        _link_images(source, out, images_of(source), pictures)
    else:
        # The set as its reader expects it: what is apart, in one directory.
        (out / IMAGES).symlink_to(pictures.resolve())
        used = _images_of(images_of, out, {out / IMAGES: str(pictures), out: str(source)})
        (out / IMAGES).unlink()
        names = [path.relative_to(out / IMAGES) for path in used]
        _link_images(pictures, out / IMAGES, [pictures / name for name in names], pictures)


def _images_of(images_of: ImagesOf, directory: Path, called: dict[Path, str]) -> set[Path]:
    """The images of ``directory``; an error calls its paths what the user knows them by.

    The directory itself is about to vanish.
    """
    try:
        return set(images_of(directory))
    except UserError as error:
        message = str(error)
        for path, name in called.items():
            message = message.replace(str(path), name)
        raise UserError(message) from error


def _link_images(source: Path, out: Path, images: Iterable[Path], pictures: Path) -> None:
    """Link ``images`` of ``source`` into ``out``; those among ``pictures`` may not lead out."""
    for path in tqdm(sorted(set(images)), "images", disable=None, delay=2):
        top = pictures if path.is_relative_to(pictures) else source
        if not path.resolve().is_relative_to(top.resolve()):
            raise UserError(f"{path} is a link that leads out of {top}: put the image itself there")
        destination = out / path.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        _link(path, destination)


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


def _unpack_pictures(pattern: Path, into: Path) -> None:
    """Write the images of the Parquet files of ``pattern`` under the names that their rows say."""
    into.mkdir()
    tables = sorted(pattern.parent.glob(pattern.name))
    if not tables:
        raise UserError(f"{pattern} is missing: put the files of pictures there")
    for row in tqdm(_rows(tables), "pictures", disable=None, delay=2):
        name = str(row.get(NAME, ""))
        images = [value for value in row.values() if _is_image(value) and value["bytes"]]
        if not name or Path(name).name != name or len(images) != 1:
            raise UserError(f"{pattern}: each row needs one image and its name in {NAME!r}")
        (into / name).write_bytes(images[0]["bytes"])


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
    if not _is_image(value):
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


def _is_image(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"bytes", "path"}
