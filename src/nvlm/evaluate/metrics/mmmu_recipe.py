"""How the recipe reads answers to MMMU's questions, quirks and all.

Rules of github.com/MMMU-Benchmark/MMMU (mmmu/utils/eval_utils.py) with the changes of Megatron-LM
(examples/multimodal/evaluation/evaluate_mmmu.py and mmmu_utils.py). A score by these rules can be
compared with the paper's; ``metrics.choice`` says where our own reading is better. Known quirks:
- multiple choice: "X)" counts as "(X)", but which of several came last is looked up for "(X)" only,
  so "(C) because (B) is wrong" is B, and so is "C) because (B) is wrong"; "a", "**B**" and "A\\n"
  are unparsable; the unparsable is taken for the first choice (the benchmark's own program draws);
- open: "yes" is found in "yesterday", and any number of the answer may be the right one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_EXTRACTED = (re.compile(r"\\answer\{(.*?)\}"), re.compile(r"\\boxed\{(.*?)\}"))
_STRIPPED = ",.!?;:'"
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")

_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_SENTENCE = re.compile(r"\.\s(?=[A-Z])|\n")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def extract(answer: str) -> str:
    """What stands in the first \\answer{} or, without one, the first \\boxed{}; else the answer."""
    for pattern in _EXTRACTED:
        if found := pattern.search(answer):
            return found[1]
    return answer.replace("Answer:", "Answer: ")


def parse_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The letter that ``answer`` chooses of ``choices`` (A for the first), or None."""
    for character in _STRIPPED:
        answer = answer.strip(character)
    padded = f" {answer} "
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    if found := [letter for letter in letters if f"{letter})" in padded]:
        return max(found, key=lambda letter: padded.rfind(f"({letter})"))
    if found := [letter for letter in letters if f" {letter} " in padded]:
        return max(found, key=lambda letter: padded.rfind(f" {letter} "))
    if len(padded.split()) > 5:
        lower = padded.lower()
        texts = dict(zip(letters, (choice.lower() for choice in choices), strict=True))
        if found := [letter for letter in letters if texts[letter] in lower]:
            return max(found, key=lambda letter: lower.rfind(texts[letter]))
    return None


def choose(answer: str, choices: Sequence[str]) -> str:
    """The letter that the recipe scores: the parsed one, or the first choice."""
    return parse_choice(extract(answer), choices) or "A"


def is_open_answer_right(answer: str, golds: Sequence[str]) -> bool:
    """Whether one of ``golds`` is in ``answer``: a part of its text, or one of its numbers."""
    right = [value for gold in golds for value in _normalise(gold)]
    for value in _open_values(answer):
        if isinstance(value, str):
            if any(isinstance(gold, str) and gold in value for gold in right):
                return True
        elif value in right:
            return True
    return False


def key_parts(answer: str) -> list[str]:
    """The ends of ``answer`` that follow "is", "so" and the like, lower case; else all of it."""
    lower = answer.strip().strip(".").lower()
    # Sentences are meant to be cut apart as well, but after lower() no capital follows a period.
    lines = _SENTENCE.split(lower)
    parts = []
    for place, line in enumerate(lines):
        keys = (*_KEYS, "=") if place == len(lines) - 1 else _KEYS
        ends = [line.split(key)[-1].strip() for key in keys if key in line]
        if shortest := _shortest(ends):
            parts.append(shortest)
    return parts or [lower]


def _shortest(ends: Sequence[str]) -> str:
    """The first of the shortest; as upstream, an empty one gives way to whatever follows it."""
    shortest = ""
    for end in ends:
        if not shortest or len(end) < len(shortest):
            shortest = end
    return "" if shortest in _TRIVIAL else shortest


def _open_values(answer: str) -> list[str | float]:
    parts = key_parts(answer)
    numbers = [found for part in parts for pattern in _NUMBERS for found in pattern.findall(part)]
    return [value for text in [*parts, *numbers] for value in _normalise(text)]


def _normalise(text: str) -> list[str | float]:
    """A number, rounded to two decimals; or the lower-case text, a lone letter beside a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]
