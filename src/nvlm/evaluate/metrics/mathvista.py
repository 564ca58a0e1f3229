"""MathVista by rules, without a language model that extracts the answer.

``score`` is strict. Multiple choice: ``metrics.choice``. Free form, by the problem's answer type:
an integer must be met; a float after both are rounded to the problem's precision; a list number by
number; a text as whole words (``metrics.open_answer``). The number read is that of \\boxed{},
else the one that "answer is" or "=" leads to, else the last of the answer; without one the answer
is unparsable and wrong. ``first_choice`` and ``random`` guess unreadable choices.

``recipe`` is Megatron-LM's (evaluation/evaluate_mathvista.py), quirks and all: VQAEval's
normalisation first, so that signs are lost; decimals are cut to two rather than rounded, but not
within "the answer is 3.14159"; unreadable choices are the first one. An answer that normalises to
nothing stops that program; here it is compared as it is.

The publishers' own program asks a language model to extract the answer, and takes the choice that
is spelt most like it: no score here is that one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from nvlm.evaluate.metrics import mmmu_recipe, open_answer
from nvlm.evaluate.metrics.choice import boxed, parse_choice
from nvlm.evaluate.metrics.constant import best_of_commonest
from nvlm.evaluate.metrics.guess import readings
from nvlm.evaluate.metrics.vqa import normalise
from nvlm.evaluate.question import Question
from nvlm.evaluate.verdict import Verdict

NUMBER = r"[-−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:[eE][+-]?\d+)?"
_NUMBER = re.compile(rf"(?<![\w.]){NUMBER}")
_STATED = re.compile(rf"(?:\banswer\b(?:\s+is|\s*:)?|=)[\s$:]*({NUMBER})", re.IGNORECASE)
_LIST = re.compile(r"\[[^\[\]]*\]")

_DECIMAL = re.compile(r"^\d+\.\d+$")
_LETTERS = re.compile(r"[a-zA-Z]+")
_ANSWER_IS = re.compile(r"answer is -*\d+\.*\d*")
_SIGNED = re.compile(r"-*\d+\.*\d*")


def score(questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
    """One verdict an answer. Unparsable: no option chosen, no number found, no text given."""
    return [
        _choice(question, answer) if question.choices else _free_form(question, answer)
        for question, answer in zip(questions, answers, strict=True)
    ]


def best_constant(questions: Sequence[Question]) -> str:
    """The letter, or the common gold of a free-form problem, that scores most."""
    most = max(len(question.choices) for question in questions)
    return best_of_commonest(questions, score, ascii_uppercase[:most])


def _choice(question: Question, answer: str) -> Verdict:
    chosen = parse_choice(answer, question.choices)
    by_recipe = mmmu_recipe.parse_choice(answer, question.choices) or ascii_uppercase[0]
    read = {**readings(question, chosen), "recipe": by_recipe}
    return Verdict(
        score=float(chosen in question.references),
        read_as=chosen or "",
        unparsable=chosen is None,
        other_scores={name: float(letter in question.references) for name, letter in read.items()},
    )


def _free_form(question: Question, answer: str) -> Verdict:
    gold = question.references[0]
    if question.answer_type == "text":
        read = answer.strip()
        right = open_answer.is_right(boxed(answer), question.references)
    elif question.answer_type == "list":
        values, read = _listed(boxed(answer))
        right = bool(values) and values == _listed(gold)[0]
    else:
        read = _stated(answer)
        right = bool(read) and _equal(read, gold, question)
    by_recipe = float(
        recipe_extract(recipe_trim(normalise(answer))) == recipe_trim(normalise(gold))
    )
    return Verdict(
        score=float(right),
        read_as=read,
        unparsable=not read,
        other_scores={
            "first_choice": float(right),
            "random": float(right),
            "recipe": by_recipe,
        },
    )


def _stated(answer: str) -> str:
    """The number that the answer gives, as written, or ""."""
    text = boxed(answer)
    stated = _STATED.findall(text) or _NUMBER.findall(text)
    return stated[-1] if stated else ""


def _listed(text: str) -> tuple[list[float], str]:
    """The numbers of the last [...] of ``text``, and that list as written."""
    lists = _LIST.findall(text)
    if not lists:
        return [], ""
    return [_value(number) for number in _NUMBER.findall(lists[-1])], lists[-1]


def _equal(number: str, gold: str, question: Question) -> bool:
    try:
        wanted = _value(gold)
    except ValueError:
        return False
    if question.answer_type == "integer":
        return _value(number) == wanted
    decimals = question.precision or 0
    return round(_value(number), decimals) == round(wanted, decimals)


def _value(number: str) -> float:
    return float(number.replace(",", "").replace("−", "-"))


def recipe_trim(text: str) -> str:
    """Two decimals at most, none if all are 0; no per cent sign; no period at the end."""
    if _DECIMAL.match(text):
        whole, decimals = text.split(".")
        # int() as there: any digit of Unicode counts.
        text = whole if not any(map(int, decimals.rstrip("\n"))) else text[: len(whole) + 3]
    return text.replace("%", "").removesuffix(".")


def recipe_extract(text: str) -> str:
    """The number after "answer is", in a text that has words."""
    if _LETTERS.search(text) and "e+" not in text and (stated := _ANSWER_IS.search(text)):
        signed = _SIGNED.search(stated[0])
        return signed[0] if signed else stated[0]
    return text
