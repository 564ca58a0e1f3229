"""ANLS of DocVQA and InfoVQA: 1 - edit distance / length of the best gold, 0 below one half.

Texts are compared in lower case with single spaces. ``score`` is the benchmarks' definition (Biten
et al. 2019, arXiv 1907.00490): a distance of one half or more of the length scores 0.

``official`` is the organisers' program (infographicsvqa_eval.py of rrc.cvc.uab.es), which scores
the test sets: a similarity of exactly one half counts, and the length is that of the texts as
given, in capitals ("ß" is "SS") and with all their white space. ``recipe`` is Megatron-LM's
(evaluation/evaluate_vqav2.py): VQAEval's normalisation (``metrics.vqa``) comes first, so that
signs, punctuation and articles are lost, and the length is that in capitals. By all three, two
empty strings score 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from nvlm.evaluate.metrics.constant import best_of_commonest
from nvlm.evaluate.metrics.vqa import normalise
from nvlm.evaluate.question import Question
from nvlm.evaluate.verdict import Verdict

THRESHOLD = 0.5


def score(questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
    """One verdict an answer. Unparsable: empty."""
    verdicts = []
    for question, answer in zip(questions, answers, strict=True):
        read = _plain(answer)
        golds = question.references
        verdicts.append(
            Verdict(
                score=max(by_definition(read, _plain(gold)) for gold in golds),
                read_as=read,
                unparsable=not read,
                other_scores={
                    "official": max(by_organisers(answer, gold) for gold in golds),
                    "recipe": max(by_recipe(answer, gold) for gold in golds),
                },
            )
        )
    return verdicts


def best_constant(questions: Sequence[Question]) -> str:
    """The best of the commonest golds."""
    return best_of_commonest(questions, score)


def by_definition(answer: str, gold: str) -> float:
    """Similarity of plain texts; 0 from a distance of one half."""
    return _near(_distance(answer, gold, max(len(answer), len(gold))))


def by_organisers(answer: str, gold: str) -> float:
    """The organisers', of raw texts."""
    length = max(len(answer.upper()), len(gold.upper()))
    similarity = 1 - _distance(_plain(answer), _plain(gold), length)
    return similarity if similarity >= THRESHOLD else 0.0


def by_recipe(answer: str, gold: str) -> float:
    """The recipe's, of raw texts."""
    answer, gold = _plain(normalise(answer)), _plain(normalise(gold))
    return _near(_distance(answer, gold, max(len(answer.upper()), len(gold.upper()))))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _distance(answer: str, gold: str, length: int) -> float:
    return Levenshtein.distance(answer, gold) / length if length else 0.0


def _near(distance: float) -> float:
    return 1 - distance if distance < THRESHOLD else 0.0
