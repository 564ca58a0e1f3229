"""What has been said and shown so far; who answers it is ``local`` or ``server``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from PIL import Image

from nvlm.errors import UserError
from nvlm.model.prompts import IMAGE, SYSTEM, Conversation, Turn


@dataclass(kw_only=True)
class Dialogue:
    """Turns, the last of which a model is to answer, and their images in order."""

    turns: Conversation = field(default_factory=lambda: [Turn(role="system", text=SYSTEM)])
    images: list[Path] = field(default_factory=list)
    shown: int = 0  # of the images, those that a turn has

    def show(self, path: Path) -> None:
        """Put an image before the next question. Raises UserError if it is none."""
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{path} is no picture that can be read ({error})") from error
        self.images.append(path)

    def ask(self, text: str) -> None:
        """The user's turn, with the images that were put before it.

        What the user writes is text: an ``<image>`` in it stands for none.
        """
        new = len(self.images) - self.shown
        self.turns.append(Turn(role="user", text=f"{IMAGE}\n" * new + text.replace(IMAGE, "")))
        self.shown = len(self.images)

    def answer(self, text: str) -> None:
        """The assistant's turn, whole or as far as it got."""
        self.turns.append(Turn(role="assistant", text=text))

    def take_back(self) -> None:
        """Forget the last question, which has no answer; its images stay before the next one."""
        self.shown -= self.turns.pop().text.count(IMAGE)


class Model(Protocol):
    """Whoever answers."""

    def stream(self, dialogue: Dialogue, max_new_tokens: int) -> Iterator[str]:
        """The answer to the last turn, piece by piece. Raises UserError if there can be none."""
