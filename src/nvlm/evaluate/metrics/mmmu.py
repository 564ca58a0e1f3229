"""MMMU: multiple choice and open questions, by strict rules, and by the recipe's beside them.

``score`` is strict: an answer that can't be read is wrong. Other scores of the same answers:
``first_choice`` and ``random`` guess the unparsable (``metrics.guess``), as other programs do, and
``recipe`` is what the recipe reports, parser and guess together. Each is a mean over questions, not
over subjects. None is exactly that of the benchmark's own program (eval_utils.py), which reads open
answers as the recipe does, but of letters counts "(X)" and not "X)", and draws for the unparsable
from one stream for all questions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from nvlm.evaluate.metrics import mmmu_recipe, open_answer
from nvlm.evaluate.metrics.choice import parse_choice
from nvlm.evaluate.metrics.guess import readings
from nvlm.evaluate.question import Question
from nvlm.evaluate.verdict import Verdict

_IMAGE_TAG = re.compile(r"<image \d+>")


def score(questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
    """One verdict an answer. Unparsable: no option chosen, or an empty open answer."""
    return [
        _score_choice(question, answer) if question.choices else _score_open(question, answer)
        for question, answer in zip(questions, answers, strict=True)
    ]


def best_constant(questions: Sequence[Question]) -> str:
    """The letter, or the right answer of an open question, that scores most when given to all."""
    most_choices = max(len(question.choices) for question in questions)
    golds = [gold for question in questions if not question.choices for gold in question.references]
    candidates = dict.fromkeys([*ascii_uppercase[:most_choices], *golds])
    return max(
        candidates,
        key=lambda answer: sum(
            verdict.score for verdict in score(questions, [answer] * len(questions))
        ),
    )


def _score_choice(question: Question, answer: str) -> Verdict:
    chosen = parse_choice(answer, [_IMAGE_TAG.sub(" ", choice) for choice in question.choices])
    recipe = mmmu_recipe.choose(answer, question.choices)
    read = {**readings(question, chosen), "recipe": recipe}
    return Verdict(
        score=float(chosen in question.references),
        read_as=chosen or "",
        unparsable=chosen is None,
        other_scores={name: float(letter in question.references) for name, letter in read.items()},
    )


def _score_open(question: Question, answer: str) -> Verdict:
    right = float(open_answer.is_right(answer, question.references))
    by_recipe = float(mmmu_recipe.is_open_answer_right(answer, question.references))
    return Verdict(
        score=right,
        read_as=" | ".join(mmmu_recipe.key_parts(answer)),
        unparsable=not answer.strip(),
        other_scores={"first_choice": right, "random": right, "recipe": by_recipe},
    )
