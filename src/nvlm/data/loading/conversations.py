"""From a stored sample to a conversation: prompts by task, a drawn answer, boxes as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from megatron.energon import (
    CaptioningSample,
    MultiChoiceVQASample,
    OCRSample,
    Sample,
    SimilarityInterleavedSample,
    VQASample,
)

from nvlm.errors import UserError
from nvlm.model.prompts import (
    DESCRIBE,
    IMAGE,
    LETTERS,
    PROMPTS,
    SYSTEM,
    Conversation,
    Role,
    Template,
    Turn,
    multiple_choice,
)

# Coordinates of boxes in text run from 0 to 999 along each side, and a box is written as two
# corners after the text that it surrounds: Qwen-VL's notation (arXiv 2308.12966, section 3.2).
BOX_SCALE = 1000

_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant"}


def images_of(sample: Sample) -> list[bytes]:
    """The encoded images of ``sample``, in the order of their marks."""
    if isinstance(sample, SimilarityInterleavedSample):
        return cast(list[bytes], sample.images)
    return [cast(Any, sample).image]


def conversation_of(
    sample: Sample, rng: np.random.Generator, template: Template, size: tuple[int, int] | None
) -> Conversation:
    """The turns of ``sample``; only ChatML has a system turn (the paper's Figures 11, 12).

    ``size``: width and height of the image in pixels, where there is one. ``rng`` draws a prompt
    from the list of the dataset's task, and an answer by its weight.
    """
    if isinstance(sample, SimilarityInterleavedSample):
        # Energon calls the texts of an interleaved sample str; LLaVA's layout has pairs.
        texts = cast(list[dict[str, str]], sample.texts)
        turns = [Turn(role=_ROLES[turn["from"]], text=turn["value"]) for turn in texts]
    else:
        question, answer = _question_and_answer(sample, rng, size)
        turns = [
            Turn(role="user", text=f"{IMAGE}\n{_without_image(question)}"),
            Turn(role="assistant", text=answer),
        ]
    if template == "chatml":
        turns.insert(0, Turn(role="system", text=SYSTEM))
    return turns


def boxes_text(
    words: Sequence[str], boxes: Sequence[Sequence[float]], size: tuple[int, int]
) -> str:
    """``words``, a line each, with their boxes (left, top, width, height in pixels) as text."""
    lines = []
    for word, (left, top, width, height) in zip(words, boxes, strict=True):
        corners = [
            f"({_thousandth(x, size[0])},{_thousandth(y, size[1])})"
            for x, y in ((left, top), (left + width, top + height))
        ]
        lines.append(f"<ref>{word}</ref><box>{','.join(corners)}</box>")
    return "\n".join(lines)


def _thousandth(position: float, side: int) -> int:
    return min(max(int(position * BOX_SCALE / side), 0), BOX_SCALE - 1)


def _question_and_answer(
    sample: Sample, rng: np.random.Generator, size: tuple[int, int] | None
) -> tuple[str, str]:
    task = (sample.__subflavors__ or {}).get("task")
    if isinstance(sample, CaptioningSample):
        return _draw(PROMPTS[task] if task else (DESCRIBE,), rng), sample.caption
    if isinstance(sample, MultiChoiceVQASample):
        assert sample.choices is not None
        question = multiple_choice(sample.context, sample.choices)
        return question, LETTERS[sample.correct_choice_idx]
    if isinstance(sample, VQASample):
        suffix = _draw(PROMPTS[task], rng) if task else ""
        return sample.context + suffix, _drawn_answer(sample, rng)
    if isinstance(sample, OCRSample):
        question = _draw(PROMPTS[task or "ocr"], rng)
        if task == "ocr_boxes" and sample.words_boxes and sample.words_text:
            assert size is not None
            boxes = cast(list[list[float]], sample.words_boxes)
            return question, boxes_text(sample.words_text, boxes, size)
        return question, sample.text
    raise UserError(f"{type(sample).__name__} cannot be trained on: see nvlm/data/records.py")


def _drawn_answer(sample: VQASample, rng: np.random.Generator) -> str:
    answers = cast(list[str], sample.answers)
    weights = sample.answer_weights
    if weights is None:
        return answers[int(rng.integers(len(answers)))]
    chances = np.asarray(weights, dtype=np.float64)
    return answers[int(rng.choice(len(answers), p=chances / chances.sum()))]


def _draw(prompts: Sequence[str], rng: np.random.Generator) -> str:
    return prompts[int(rng.integers(len(prompts)))] if len(prompts) > 1 else prompts[0]


def _without_image(question: str) -> str:
    """``question`` without the marks of images: a sample has one image, and it comes first."""
    return question.replace(IMAGE, "").lstrip("\n")
