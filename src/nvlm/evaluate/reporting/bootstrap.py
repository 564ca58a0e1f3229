"""95 % intervals by the percentile bootstrap: the questions are drawn anew, with replacement.

An interval says how far a score would move with other questions of the same kind, the model, its
answers and, for CIDEr, the document frequencies staying as they are (Efron and Tibshirani 1993,
chapter 13). Draws are seeded: the same scores give the same interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nvlm.evaluate.verdict import CorpusScores

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)
SEED = 0
_NUMBERS_AT_ONCE = 1 << 22  # 32 MiB

Interval = tuple[float, float]


def mean_interval(values: Sequence[float]) -> Interval:
    """Interval of the mean of ``values``.

    Answers with equal scores are drawn together, how often each score comes being multinomial: for
    a metric with four possible scores, 200,000 answers cost no more than four.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    means = [draws @ distinct / len(values) for draws in _draws(counts)]
    return _percentiles(np.concatenate(means))


def corpus_intervals(corpus: CorpusScores) -> Mapping[str, Interval]:
    """Interval of each of the ``corpus``'s scores."""
    ones = np.ones(len(corpus.statistics), dtype=np.int64)
    sums = np.concatenate([draws @ corpus.statistics for draws in _draws(ones)])
    return {name: _percentiles(values) for name, values in corpus.scores(sums).items()}


def _draws(counts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """How often each kind is drawn, some of ``RESAMPLES`` rows at a time."""
    rng = np.random.default_rng(SEED)
    total = int(counts.sum())
    rows = max(1, _NUMBERS_AT_ONCE // len(counts))
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        yield rng.multinomial(total, counts / total, size=size)


def _percentiles(values: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)
