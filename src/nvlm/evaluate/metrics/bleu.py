"""BLEU of captions, without Java: shared n-grams of all captions together.

Papineni et al. 2002, as github.com/tylin/coco-caption computes it (pycocoevalcap/bleu): clipped
counts of n-grams up to 4 tokens, summed over all captions; of an image's references the one closest
in length counts for the brevity penalty, the shorter of two; a count of 0 is 1e-15 of one. Tokens
and the caption's preparation are those of CIDEr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nvlm.evaluate.metrics.cider import ORDERS, answer_tokens, count_ngrams, tokens
from nvlm.evaluate.question import Question
from nvlm.evaluate.verdict import CorpusScores

# Upstream's guards against 0 / 0.
TINY, SMALL = 1e-15, 1e-9


def corpus_scores(questions: Sequence[Question], answers: Sequence[str]) -> CorpusScores:
    """``bleu_1`` to ``bleu_4`` (0 to 1) of the captions ``answers``."""
    rows = [
        _statistics(answer_tokens(answer), [tokens(caption) for caption in question.references])
        for question, answer in zip(questions, answers, strict=True)
    ]
    return CorpusScores(statistics=np.array(rows), scores=_scores)


def _statistics(answer: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Right n-grams by order, n-grams by order, tokens, tokens of the closest reference."""
    right = [0.0] * ORDERS
    allowed = [count_ngrams(reference) for reference in references]
    for ngram, count in count_ngrams(answer).items():
        right[len(ngram) - 1] += min(count, max(counts.get(ngram, 0) for counts in allowed))
    given = [float(max(0, len(answer) - order)) for order in range(ORDERS)]
    closest = min((abs(len(reference) - len(answer)), len(reference)) for reference in references)
    return [*right, *given, float(len(answer)), float(closest[1])]


def _scores(sums: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
    right, given = sums[:, :ORDERS], sums[:, ORDERS : 2 * ORDERS]
    precision = np.asarray(np.cumprod((right + TINY) / (given + SMALL), axis=1), dtype=np.float64)
    ratio = (sums[:, -2] + TINY) / (sums[:, -1] + SMALL)
    brevity = np.asarray(np.exp(np.minimum(0.0, 1 - 1 / ratio)), dtype=np.float64)
    return {
        f"bleu_{order}": precision[:, order - 1] ** (1 / order) * brevity
        for order in range(1, ORDERS + 1)
    }
