"""Our scores held against the published ones: pass, near or off.

The same model has been published with several scores (by another program; trained again by the same
recipe). Their span is the tolerance: within it ours is as near as NVIDIA's own are to one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvlm.evaluate.answering.answers import Answer
from nvlm.evaluate.params import PublishedParams, PublishedSource
from nvlm.evaluate.question import Question
from nvlm.evaluate.reporting.table import aligned
from nvlm.evaluate.verdict import Metric, Verdict

LISTED = 20  # questions of a task that are shown
PASS, NEAR, OFF = "pass", "near", "off"


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """One of our scores beside those published of the same branch, split and setting; in points."""

    task: str
    split: str  # with the setting, and with the split of ours where it is another
    score: float
    interval: tuple[float, float]  # 95 %
    published: Mapping[str, float]  # by source; at least one
    scale: int

    @property
    def spread(self) -> float:
        """By how much the published scores differ."""
        return max(self.published.values()) - min(self.published.values())

    @property
    def verdict(self) -> str:
        """Pass within the published scores' span, as they are rounded; near if outside by no more
        than another spread, or by no more than chance (the interval reaches the span)."""
        low, high = min(self.published.values()), max(self.published.values())
        rounding = self.scale / 2000  # points are published to a thousandth of full marks
        outside = max(low - self.score, self.score - high) - rounding
        if outside <= 0:
            return PASS
        reached = self.interval[0] <= high + rounding and low - rounding <= self.interval[1]
        return NEAR if reached or outside <= self.spread else OFF


@dataclass(frozen=True, kw_only=True)
class JudgedDifferently:
    """A question on which two answers score differently."""

    question: Question
    ours: tuple[str, float]  # answer and score
    stored: tuple[str, float]


def by_rule(report: Mapping[str, Any], rule: str) -> Mapping[str, Any]:
    """The part of a task's ``report`` that is by ``rule``: "score", or another published one."""
    part: Mapping[str, Any] = report if rule == "score" else report["other_scores"][rule]
    return part


def reproduction(
    task: str, published: PublishedParams, branch: str, report: Mapping[str, Any]
) -> Reproduction | None:
    """``report`` of ``branch`` beside the rows of its split; None where there is none."""
    rows = [row for row in published.rows if row.split == published.split and branch in row.scores]
    if not rows:
        return None
    ours = by_rule(report, published.ours)
    score, low, high = (ours[name] * published.scale for name in ("score", "low", "high"))
    return Reproduction(
        task=task,
        split=split_label(published, published.split),
        score=score,
        interval=(low, high),
        published={row.source: row.scores[branch] for row in rows},
        scale=published.scale,
    )


def as_published(points: float, scale: int) -> str:
    """Tenths of a percent, or whole points of 1,000."""
    return f"{points:.1f}" if scale == 100 else f"{points:.0f}"


def split_label(published: PublishedParams, split: str) -> str:
    """``split``, its setting, and the split of ours where it is another."""
    label = split
    if setting := next((row.setting for row in published.rows if row.split == split), ""):
        label += f", {setting}"
    if split == published.split and published.own_split:
        label += f" (ours: {published.own_split})"
    return label


def reproduction_table(
    found: Sequence[Reproduction], sources: Mapping[str, PublishedSource]
) -> str:
    """One line a benchmark, then what the sources are."""
    heads = ("benchmark", "split", "ours", "95 % interval", *sources, "spread", "verdict")
    rows = [heads]
    for each in found:
        low, high = each.interval
        given = (each.published.get(source) for source in sources)
        rows.append(
            (
                each.task,
                each.split,
                f"{each.score:.1f}",
                f"{low:.1f} to {high:.1f}",
                *("-" if points is None else as_published(points, each.scale) for points in given),
                f"{each.spread:.1f}",
                each.verdict,
            )
        )
    legend = [f"{name}: {source.title}, {source.address}" for name, source in sources.items()]
    legend.append("They are of the full recipe: a score of scale=smoke can't be held against them.")
    return "\n".join([aligned(rows, left=2), "", *legend])


def judged_differently(
    metric: Metric,
    rule: str,
    questions: Sequence[Question],
    ours: Sequence[Answer],
    stored: Sequence[Answer],
) -> list[JudgedDifferently]:
    """The questions on which ``ours`` and ``stored``, in their order, score differently."""
    judged = [metric.score(questions, [answer.text for answer in run]) for run in (ours, stored)]
    found = [
        JudgedDifferently(
            question=question,
            ours=(our_answer.text, _score(our_verdict, rule)),
            stored=(stored_answer.text, _score(stored_verdict, rule)),
        )
        for question, our_answer, stored_answer, our_verdict, stored_verdict in zip(
            questions, ours, stored, *judged, strict=True
        )
    ]
    return [each for each in found if each.ours[1] != each.stored[1]]


def difference_lines(
    task: str, questions: int, different: Sequence[JudgedDifferently]
) -> list[str]:
    """How many, and the first ``LISTED`` of them."""
    lines = [f"{task}: {len(different)} of {questions} questions are judged differently"]
    for each in different[:LISTED]:
        pairs = zip(("ours", "stored"), (each.ours, each.stored), strict=True)
        said = ", ".join(f"{name} {text!r} {score:.2f}" for name, (text, score) in pairs)
        truth = " | ".join(dict.fromkeys(each.question.references))
        lines.append(f"  {each.question.id}: {said} (truth: {truth})")
    if len(different) > LISTED:
        lines.append(f"  and {len(different) - LISTED} more")
    return lines


def _score(verdict: Verdict, rule: str) -> float:
    return verdict.score if rule == "score" else verdict.other_scores[rule]
