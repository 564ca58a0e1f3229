"""ANLS of DocVQA and InfoVQA: 1 - edit distance / length of the best gold, 0 below one half.

Biten et al. 2019 (arXiv 1907.00490), threshold 0.5: a normalised distance of 0.5 or more scores 0.
``score`` compares texts in lower case with single spaces, as the benchmarks define it. ``recipe``
is Megatron-LM's (evaluation/evaluate_vqav2.py): VQAEval's normalisation (``metrics.vqa``) comes
first, so that signs, punctuation and articles are lost, and the length is that of the texts in
capitals ("ß" counts as "SS"). By both, two empty strings score 1.
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
        normal = _plain(normalise(answer))
        golds = question.references
        verdicts.append(
            Verdict(
                score=max(_similarity(read, _plain(gold)) for gold in golds),
                read_as=read,
                unparsable=not read,
                other_scores={
                    "recipe": max(
                        _similarity(normal, _plain(normalise(gold)), capitals=True)
                        for gold in golds
                    )
                },
            )
        )
    return verdicts


def best_constant(questions: Sequence[Question]) -> str:
    """The best of the commonest golds."""
    return best_of_commonest(questions, score)


def _plain(text: str) -> str:
    return " ".join(text.strip().lower().split())


def _similarity(answer: str, gold: str, *, capitals: bool = False) -> float:
    texts = (answer.upper(), gold.upper()) if capitals else (answer, gold)
    length = max(map(len, texts))
    if not length:
        return 1.0
    distance = Levenshtein.distance(answer, gold) / length
    return 1 - distance if distance < THRESHOLD else 0.0
