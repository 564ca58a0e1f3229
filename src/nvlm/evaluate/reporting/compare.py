"""Two runs on the same questions, answer by answer: is one better, or was it luck?

The difference of two scores hides that both runs answered the same questions. Paired, most of the
questions' own difficulty cancels: an interval of the mean difference comes from drawing pictures
anew, each with all of its questions (the paired, clustered bootstrap). ``p`` asks how likely a
difference as large is if either run might as well have been the other one on each picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvlm.errors import UserError
from nvlm.evaluate.answering.answers import Answer
from nvlm.evaluate.question import Question
from nvlm.evaluate.reporting.bootstrap import (
    NUMBERS_AT_ONCE,
    SEED,
    mean_interval,
    sums_by_cluster,
)
from nvlm.evaluate.reporting.clusters import picture_clusters
from nvlm.evaluate.reporting.table import aligned
from nvlm.evaluate.verdict import Metric

HEADINGS = (
    *("task", "samples", "clusters", "A", "B", "B - A", "95 % interval"),
    *("B wins", "A wins", "ties", "p"),
)
FLIPS = 10_000


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Run B against run A on one task."""

    task: str
    samples: int
    clusters: int  # pictures that the questions are of
    scores: tuple[float, float]  # of A, of B
    difference: float  # B - A
    interval: tuple[float, float]  # of the difference, 95 %
    wins: int  # questions on which B scores more
    losses: int
    p: float  # two-sided, of the difference (sign_flip)


def compare(
    task: str,
    metric: Metric,
    questions: Sequence[Question],
    first: Sequence[Answer],
    second: Sequence[Answer],
) -> Comparison:
    """``second`` (B) against ``first`` (A), both in the order of ``questions``."""
    scores = [
        [verdict.score for verdict in metric.score(questions, [answer.text for answer in answers])]
        for answers in (first, second)
    ]
    differences = [b - a for a, b in zip(*scores, strict=True)]
    wins = sum(difference > 0 for difference in differences)
    losses = sum(difference < 0 for difference in differences)
    count, clusters = len(questions), picture_clusters(questions)
    return Comparison(
        task=task,
        samples=count,
        clusters=int(clusters.max()) + 1,
        scores=(sum(scores[0]) / count, sum(scores[1]) / count),
        difference=sum(differences) / count,
        interval=mean_interval(differences, clusters),
        wins=wins,
        losses=losses,
        p=sign_flip(sums_by_cluster(differences, clusters)),
    )


def sign_flip(sums: NDArray[np.float64]) -> float:
    """Two-sided p of the pictures' summed differences, each of which might have the other sign.

    Where all that differ do so by as much (one question a picture, right or wrong) this is
    McNemar's exact test (McNemar 1947); else it is estimated from ``FLIPS`` draws of the signs.
    """
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    if len(sizes) < 2:
        return mcnemar(int((sums > 0).sum()), int((sums < 0).sum()))
    rng = np.random.default_rng(SEED)
    rows = max(1, NUMBERS_AT_ONCE // len(sizes))
    as_large = 1  # the signs as they are count as a draw, so that p is never 0
    for start in range(0, FLIPS, rows):
        kept = rng.binomial(counts, 0.5, size=(min(rows, FLIPS - start), len(sizes)))
        flipped = np.abs((2 * kept - counts) @ sizes)
        as_large += int((flipped >= abs(sums.sum()) - 1e-6).sum())
    return as_large / (1 + FLIPS)


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided exact p of a split of ``wins + losses`` fair coins as uneven as this or more."""
    tosses = wins + losses
    log_half = tosses * math.log(0.5)
    tail = math.fsum(
        math.exp(
            math.lgamma(tosses + 1) - math.lgamma(k + 1) - math.lgamma(tosses - k + 1) + log_half
        )
        for k in range(min(wins, losses) + 1)
    )
    return min(1.0, 2 * tail)


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """One line a task. Raises UserError if nothing was compared."""
    if not comparisons:
        raise UserError("the two runs have no task in common: name two directories of answers")
    return aligned([HEADINGS, *map(_cells, comparisons)], left=1)


def _cells(comparison: Comparison) -> tuple[str, ...]:
    low, high = comparison.interval
    return (
        comparison.task,
        str(comparison.samples),
        str(comparison.clusters),
        *(f"{score:.4f}" for score in comparison.scores),
        f"{comparison.difference:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        str(comparison.wins),
        str(comparison.losses),
        str(comparison.samples - comparison.wins - comparison.losses),
        f"{comparison.p:.2g}",
    )
