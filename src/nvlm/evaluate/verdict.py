"""What a metric says of one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nvlm.evaluate.question import Question


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The worth of one answer."""

    score: float  # 0 to 1 (CIDEr: 0 to 10); the task's score is the mean
    read_as: str  # what was compared with the references
    unparsable: bool = False  # nothing to compare was found in the answer
    other_scores: Mapping[str, float] = field(default_factory=dict)  # by other published rules


class Metric(Protocol):
    """A rule to score answers by. Every answer counts: none is dropped."""

    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
        """One verdict an answer, in their order."""
        ...

    def best_constant(self, questions: Sequence[Question]) -> str:
        """The answer that scores most when it is given to all questions."""
        ...
