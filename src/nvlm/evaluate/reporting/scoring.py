"""From questions and answers to a task's report, by the metric that conf/eval/ names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nvlm.errors import UserError
from nvlm.evaluate.metrics import anls, bleu, cider, exact, mathvista, mmmu, ocrbench, relaxed, vqa
from nvlm.evaluate.question import Question
from nvlm.evaluate.reporting.bootstrap import Interval, corpus_intervals, mean_interval
from nvlm.evaluate.reporting.clusters import Clusters, picture_clusters, within
from nvlm.evaluate.verdict import CorpusScores, Metric, Verdict

METRICS: dict[str, Metric] = {
    "anls": anls,
    "cider": cider,
    "exact": exact,
    "mathvista": mathvista,
    "mmmu": mmmu,
    "ocrbench": ocrbench,
    "relaxed": relaxed,
    "vqa": vqa,
}
# Scores of all answers together that are reported beside a metric.
CORPUS_SCORES: dict[str, Callable[[Sequence[Question], Sequence[str]], CorpusScores]] = {
    "cider": bleu.corpus_scores,
}

DIGITS = 6  # of reported scores


def metric_called(name: str) -> Metric:
    """The metric; UserError lists the names that there are."""
    if name not in METRICS:
        raise UserError(f"metric: one of {', '.join(METRICS)}, not {name!r}")
    return METRICS[name]


def report(
    metric_name: str,
    questions: Sequence[Question],
    answers: Sequence[str],
    verdicts: Sequence[Verdict],
    blank: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What reports/scores/BRANCH/MODEL/TASK.json says.

    Each score has ``low`` and ``high``, the ends of its 95 % interval (``bootstrap``), for which
    ``clusters`` pictures were drawn; ``samples`` are the questions.
    ``majority`` is the score of the best constant answer, ``majority_answer``, by the same rule;
    ``blank`` that of the answers to blank images, where they are given; ``unparsable`` counts
    answers in which nothing to score was found (they count in the score). ``other_scores`` are by
    other published rules, ``by_category`` by the benchmark's kinds of question.
    """
    metric = metric_called(metric_name)
    constant = metric.best_constant(questions)
    constants = [constant] * len(questions)
    baseline = metric.score(questions, constants)
    clusters = picture_clusters(questions)
    result: dict[str, Any] = _summary(verdicts, baseline, clusters)
    result["majority_answer"] = constant
    if blank is not None:
        result["blank"] = _mean([verdict.score for verdict in metric.score(questions, blank)])
    others = {
        name: _with_interval(_others(verdicts, name), clusters)
        | {"majority": _mean(_others(baseline, name))}
        for name in verdicts[0].other_scores
    }
    if metric_name in CORPUS_SCORES:
        compute = CORPUS_SCORES[metric_name]
        others |= _corpus(compute(questions, answers), compute(questions, constants), clusters)
    if others:
        result["other_scores"] = others
    places: dict[str, list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        places[question.category].append(place)
    if len(places) > 1:
        result["by_category"] = {
            category: _summary(
                [verdicts[place] for place in members],
                [baseline[place] for place in members],
                within(clusters, members),
            )
            for category, members in sorted(places.items())
        }
    return result


def _summary(
    verdicts: Sequence[Verdict], baseline: Sequence[Verdict], clusters: Clusters
) -> dict[str, float]:
    return {
        **_with_interval([verdict.score for verdict in verdicts], clusters),
        "majority": _mean([verdict.score for verdict in baseline]),
        "samples": len(verdicts),
        "clusters": int(clusters.max()) + 1,
        "unparsable": sum(verdict.unparsable for verdict in verdicts),
    }


def _others(verdicts: Sequence[Verdict], name: str) -> list[float]:
    return [verdict.other_scores[name] for verdict in verdicts]


def _with_interval(values: Sequence[float], clusters: Clusters) -> dict[str, float]:
    return {"score": _mean(values)} | _ends(mean_interval(values, clusters))


def _ends(interval: Interval) -> dict[str, float]:
    return {"low": round(interval[0], DIGITS), "high": round(interval[1], DIGITS)}


def _corpus(
    given: CorpusScores, constant: CorpusScores, clusters: Clusters
) -> Mapping[str, dict[str, float]]:
    intervals = corpus_intervals(given, clusters)
    majority = _whole(constant)
    return {
        name: {"score": score, **_ends(intervals[name]), "majority": majority[name]}
        for name, score in _whole(given).items()
    }


def _whole(corpus: CorpusScores) -> dict[str, float]:
    sums = corpus.statistics.sum(axis=0)[np.newaxis]
    return {name: round(float(score[0]), DIGITS) for name, score in corpus.scores(sums).items()}


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), DIGITS)
