"""What a metric says of one answer, and of all of them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nvlm.evaluate.question import Question


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The worth of one answer."""

    score: float  # 0 to 1 (CIDEr: 0 to 10); the task's score is the mean
    read_as: str  # what was compared with the references
    unparsable: bool = False  # nothing to compare was found in the answer
    other_scores: Mapping[str, float] = field(default_factory=dict)  # by other published rules


@dataclass(frozen=True, kw_only=True)
class CorpusScores:
    """Scores of a whole set of answers that are no mean of the answers' scores."""

    statistics: NDArray[np.float64]  # (answers, K), to be summed over answers
    # From sums (R, K), for R sets of answers, to each score's R values.
    scores: Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]]


class Metric(Protocol):
    """A rule to score answers by. Every answer counts: none is dropped."""

    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
        """One verdict an answer, in their order."""
        ...

    def best_constant(self, questions: Sequence[Question]) -> str:
        """The answer that scores most when it is given to all questions."""
        ...
