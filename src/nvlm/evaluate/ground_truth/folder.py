"""A folder of images to ask one prompt about: nothing is scored."""

from __future__ import annotations

from pathlib import Path

from nvlm.errors import UserError
from nvlm.evaluate.question import Question

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
PROMPT = "prompt.txt"


def read(directory: Path) -> list[Question]:
    """A question an image, sorted by name, which is its id; the text is that of prompt.txt.

    Other files are left alone. Raises UserError for a folder without images or prompt.
    """
    prompt = directory / PROMPT
    if not prompt.is_file():
        raise UserError(f"{directory} has no {PROMPT}: write the prompt there")
    text = prompt.read_text(encoding="utf-8").strip()
    images = [path for path in sorted(directory.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not images:
        raise UserError(f"{directory} holds no image: {', '.join(SUFFIXES)} are read")
    return [Question(id=path.name, images=(path,), text=text, references=()) for path in images]
