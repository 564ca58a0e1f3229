"""From questions and answers to a task's report, by the metric that conf/eval/ names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from nvlm.errors import UserError
from nvlm.evaluate.metrics import cider, mmmu, vqa
from nvlm.evaluate.question import Question
from nvlm.evaluate.verdict import Metric, Verdict

METRICS: dict[str, Metric] = {"vqa": vqa, "cider": cider, "mmmu": mmmu}

DIGITS = 6  # of reported scores


def metric_called(name: str) -> Metric:
    """The metric; UserError lists the names that there are."""
    if name not in METRICS:
        raise UserError(f"metric: one of {', '.join(METRICS)}, not {name!r}")
    return METRICS[name]


def report(
    metric: Metric, questions: Sequence[Question], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    """What metrics/BRANCH/MODEL/TASK.json says.

    ``majority`` is the score of the best constant answer, ``majority_answer``, by the same rule;
    ``unparsable`` counts answers in which nothing to score was found (they count in the score).
    """
    constant = metric.best_constant(questions)
    constants = metric.score(questions, [constant] * len(questions))
    by_category: dict[str, list[Verdict]] = defaultdict(list)
    for question, verdict in zip(questions, verdicts, strict=True):
        by_category[question.category].append(verdict)
    others = {
        name: _mean([verdict.other_scores[name] for verdict in verdicts])
        for name in verdicts[0].other_scores
    }
    result = {
        "score": _mean_score(verdicts),
        "majority": _mean_score(constants),
        "majority_answer": constant,
        "samples": len(verdicts),
        "unparsable": sum(verdict.unparsable for verdict in verdicts),
        **others,
    }
    if len(by_category) > 1:
        result["by_category"] = {
            category: {"score": _mean_score(members), "samples": len(members)}
            for category, members in sorted(by_category.items())
        }
    return result


def _mean_score(verdicts: Sequence[Verdict]) -> float:
    return _mean([verdict.score for verdict in verdicts])


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), DIGITS)
