"""From a conversation to the text that the decoder sees: ChatML, image tags, tile tags.

Rendering keeps three kinds of piece apart: text, control tokens and images. What a user wrote is
always text, so that a question which contains ``<|im_end|>`` cannot end its turn. (Upstream joins
everything into one string first, and there it can.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["system", "user", "assistant"]
Template = Literal["chatml", "plain"]
Kind = Literal["text", "control", "image"]
TEMPLATES = get_args(Template)

IMAGE = "<image>"  # stands for one image in a user's text
# The paper's Figure 12.
SYSTEM = "Follow the user's instruction and answer questions."

# What the recipe appends to questions (VQAv2; TextVQA) and asks for captions.
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
READ_ANSWER = "\nAnswer the question using a single word, phrase, or number."
DESCRIBE = "Give a brief description of this image in one sentence."
CHOOSE = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Task of a dataset -> prompts, one of which is drawn for each sample: the whole prompt for captions
# and for reading, what follows the question for questions.
PROMPTS: dict[str, tuple[str, ...]] = {
    "captioning": (
        DESCRIBE,
        "Describe the image briefly.",
        "Provide a one-sentence caption for the image.",
        "Write a short caption for this image.",
        "Summarise what this image shows in one sentence.",
    ),
    "detailed_captioning": (
        "Describe the image in detail.",
        "Give a detailed description of this image.",
        "What does this image show? Describe it thoroughly.",
    ),
    "ocr": (
        "Read all the text in the image.",
        "What does the text in the image say?",
        "Transcribe the text in this image.",
        "Extract the text from the image.",
    ),
    "ocr_boxes": (
        "Read the text in the image, with the box of each piece.",
        "Locate and transcribe every piece of text in this image.",
        "List the pieces of text in the image and their boxes.",
    ),
    "short_answer": (SHORT_ANSWER,),
    "read_answer": (READ_ANSWER,),
    "open_answer": ("",),
}

START, END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side says. Only a user's text may hold ``<image>``, once an image."""

    role: Role
    text: str


Conversation = list[Turn]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A piece of the rendered conversation; ``answer`` marks what the model is trained to say."""

    text: str
    answer: bool = False
    kind: Kind = "text"


def render(
    conversation: Sequence[Turn], template: Template, *, generation: bool = False
) -> list[Segment]:
    """Render ``conversation``; with ``generation`` end where the assistant is to go on.

    ``chatml`` (instruction tuning, the paper's Figure 12): each turn is
    ``<|im_start|>role\\ntext<|im_end|>\\n``; the assistant's text, its ``<|im_end|>`` and, as in
    Megatron, the newline after it are trained. ``plain`` (pretraining, Figure 11): prompt, space,
    answer, ``<|im_end|>``; answer and ``<|im_end|>`` are trained, and there is no system turn.
    """
    segments: list[Segment] = []
    for turn in conversation:
        segments += _chatml_turn(turn) if template == "chatml" else _plain_turn(turn)
    if generation:
        segments += _answer_start() if template == "chatml" else []
    return segments


def multiple_choice(question: str, choices: Sequence[str]) -> str:
    """The recipe's wording of a multiple-choice question; the answer is the letter."""
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *options, CHOOSE])


def tile_tags(family: str, tiles: int) -> list[str]:
    """The 1-D tile tags of an image of ``tiles`` tiles, thumbnail included (section 4.2).

    A single tile is the whole image and carries the thumbnail's tag. The thumbnail's tag differs
    between the families because of upstream's fixed five tokens a tag with Qwen2's tokenizer.
    """
    thumbnail = "<tile_global_thumbnail>" if family == "qwen2" else "<tile_global>"
    return [*(f"<tile_{number}>" for number in range(1, tiles)), thumbnail]


def _chatml_turn(turn: Turn) -> list[Segment]:
    if turn.role == "assistant":
        return [
            *_answer_start(),
            Segment(text=turn.text, answer=True),
            Segment(text=END, answer=True, kind="control"),
            Segment(text="\n", answer=True),
        ]
    return [
        Segment(text=START, kind="control"),
        *_with_images(f"{turn.role}\n", turn),
        Segment(text=END, kind="control"),
        Segment(text="\n"),
    ]


def _plain_turn(turn: Turn) -> list[Segment]:
    if turn.role == "assistant":
        return [
            Segment(text=turn.text, answer=True),
            Segment(text=END, answer=True, kind="control"),
        ]
    if turn.role == "system":
        raise ValueError("the plain template has no system turn")
    return [*_with_images("", turn), Segment(text=" ")]


def _answer_start() -> list[Segment]:
    return [Segment(text=START, kind="control"), Segment(text="assistant\n")]


def _with_images(start: str, turn: Turn) -> list[Segment]:
    """``start`` and the turn's text, each image of a user in ``<Image></Image>``."""
    if turn.role != "user":
        return [Segment(text=start + turn.text)]
    first, *others = turn.text.split(IMAGE)
    segments = []
    text = start + first
    for other in others:
        segments += [Segment(text=f"{text}<Image>"), Segment(text=IMAGE, kind="image")]
        text = f"</Image>{other}"
    return [*segments, Segment(text=text)]
