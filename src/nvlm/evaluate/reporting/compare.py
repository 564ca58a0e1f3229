"""Two runs on the same questions, answer by answer: is one better, or was it luck?

The difference of two scores hides that both runs answered the same questions. Paired, most of the
questions' own difficulty cancels: an interval of the mean difference comes from drawing questions
anew (the paired bootstrap), and where every answer is right or wrong McNemar's exact test
says how likely so uneven a split of the differing answers is by chance (McNemar 1947).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nvlm.errors import UserError
from nvlm.evaluate.answering.answers import Answer
from nvlm.evaluate.question import Question
from nvlm.evaluate.reporting.bootstrap import mean_interval
from nvlm.evaluate.verdict import Metric

HEADINGS = ("task", "samples", "A", "B", "B - A", "95 % interval", "B wins", "A wins", "ties", "p")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Run B against run A on one task."""

    task: str
    samples: int
    scores: tuple[float, float]  # of A, of B
    difference: float  # B - A
    interval: tuple[float, float]  # of the difference, 95 %
    wins: int  # questions on which B scores more
    losses: int
    mcnemar: float | None  # two-sided p, where all scores are 0 or 1


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
    binary = {score for of_run in scores for score in of_run} <= {0.0, 1.0}
    count = len(questions)
    return Comparison(
        task=task,
        samples=count,
        scores=(sum(scores[0]) / count, sum(scores[1]) / count),
        difference=sum(differences) / count,
        interval=mean_interval(differences),
        wins=wins,
        losses=losses,
        mcnemar=mcnemar(wins, losses) if binary else None,
    )


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
    rows = [HEADINGS, *map(_cells, comparisons)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _cells(comparison: Comparison) -> tuple[str, ...]:
    low, high = comparison.interval
    return (
        comparison.task,
        str(comparison.samples),
        *(f"{score:.4f}" for score in comparison.scores),
        f"{comparison.difference:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        str(comparison.wins),
        str(comparison.losses),
        str(comparison.samples - comparison.wins - comparison.losses),
        "-" if comparison.mcnemar is None else f"{comparison.mcnemar:.2g}",
    )
