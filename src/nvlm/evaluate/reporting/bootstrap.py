"""95 % intervals by the percentile bootstrap: the pictures are drawn anew, with replacement.

A picture comes with all of its questions (``clusters``): answers to one picture are right or wrong
together, and drawn one by one they would make intervals too narrow (Davison and Hinkley 1997,
section 3.8; VQAv2 asks five questions of a picture). The score of a draw is its questions' mean.

An interval says how far a score would move with other pictures of the same kind, the model, its
answers and, for CIDEr, the document frequencies staying as they are. Draws are seeded: the same
scores give the same interval. It wants some fifty pictures; of fewer it is too narrow, and of one
it has no width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nvlm.evaluate.reporting.clusters import Clusters
from nvlm.evaluate.verdict import CorpusScores

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)
SEED = 0
NUMBERS_AT_ONCE = 1 << 22  # 32 MiB
_DECIMALS = 9  # of a picture's sum: thirds are added up in any order

Interval = tuple[float, float]


def mean_interval(values: Sequence[float] | NDArray[np.float64], clusters: Clusters) -> Interval:
    """Interval of the mean of ``values``, whose pictures are ``clusters``.

    Pictures with as many questions and the same sum are drawn together, how often each kind comes
    being multinomial: for a metric with four possible scores, 200,000 answers cost no more than
    some hundred.
    """
    sums, sizes = sums_by_cluster(values, clusters), np.bincount(clusters)
    kinds, counts = np.unique(np.stack([sizes, sums], axis=1), axis=0, return_counts=True)
    drawn = np.concatenate([draws @ kinds for draws in _draws(counts)])
    return _percentiles(drawn[:, 1] / drawn[:, 0])


def corpus_intervals(corpus: CorpusScores, clusters: Clusters) -> Mapping[str, Interval]:
    """Interval of each of the ``corpus``'s scores."""
    statistics = np.zeros((clusters.max() + 1, corpus.statistics.shape[1]))
    np.add.at(statistics, clusters, corpus.statistics)
    ones = np.ones(len(statistics), dtype=np.int64)
    sums = np.concatenate([draws @ statistics for draws in _draws(ones)])
    return {name: _percentiles(values) for name, values in corpus.scores(sums).items()}


def sums_by_cluster(
    values: Sequence[float] | NDArray[np.float64], clusters: Clusters
) -> NDArray[np.float64]:
    """(pictures,), the sum of each one's ``values``."""
    sums = np.zeros(clusters.max() + 1)
    np.add.at(sums, clusters, np.asarray(values))
    return sums.round(_DECIMALS)


def _draws(counts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """How often each kind is drawn, some of ``RESAMPLES`` rows at a time."""
    rng = np.random.default_rng(SEED)
    total = int(counts.sum())
    rows = max(1, NUMBERS_AT_ONCE // len(counts))
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        yield rng.multinomial(total, counts / total, size=size)


def _percentiles(values: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)
