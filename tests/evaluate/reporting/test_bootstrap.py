"""Intervals against the normal approximation, and against drawing every answer by itself."""

import numpy as np
import pytest

from nvlm.evaluate.answering.answers import Answer
from nvlm.evaluate.metrics import vqa
from nvlm.evaluate.question import Question
from nvlm.evaluate.reporting.bootstrap import corpus_intervals, mean_interval
from nvlm.evaluate.reporting.compare import compare, mcnemar
from nvlm.evaluate.verdict import CorpusScores


def test_the_interval_of_a_share_is_that_of_the_normal_approximation():
    values = [1.0] * 300 + [0.0] * 700
    low, high = mean_interval(values)
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=3e-3)
    assert mean_interval(values) == (low, high)


def test_drawing_kinds_of_score_is_drawing_answers():
    rng = np.random.default_rng(7)
    values = rng.gamma(2.0, size=400)
    drawn = rng.choice(values, size=(4000, 400)).mean(axis=1)
    assert mean_interval(list(values)) == pytest.approx(np.percentile(drawn, (2.5, 97.5)), rel=0.01)


def test_what_never_varies_has_no_width():
    assert mean_interval([0.5] * 20) == (0.5, 0.5)
    assert mean_interval([1.0]) == (1.0, 1.0)


def test_a_score_of_sums_is_drawn_with_its_answers():
    """The ratio of two sums, one of which is constant: the interval of a mean."""
    values = np.array([1.0] * 30 + [0.0] * 70)
    corpus = CorpusScores(
        statistics=np.stack([values, np.ones(100)], axis=1),
        scores=lambda sums: {"ratio": sums[:, 0] / sums[:, 1]},
    )
    low, high = corpus_intervals(corpus)["ratio"]
    assert (low, high) == pytest.approx(mean_interval(list(values)), abs=0.02)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (5, 5, 1.0),
        (600, 400, 2.7e-10),  # normal approximation with continuity correction: 3.1e-10
    ],
)
def test_mcnemar_is_the_exact_binomial(wins: int, losses: int, p: float):
    assert mcnemar(wins, losses) == pytest.approx(p, rel=0.1 if wins > 100 else 1e-9)
    assert mcnemar(losses, wins) == mcnemar(wins, losses)


def test_a_comparison_counts_wins_losses_and_ties():
    asked = [Question(id=n, images=(), text="?", references=("yes",) * 10) for n in range(8)]

    def run(texts: str) -> list[Answer]:
        return [
            Answer(question_id=place, prompt="", text={"y": "yes", "n": "no"}[text])
            for place, text in enumerate(texts)
        ]

    result = compare("VQAv2", vqa, asked, run("ynnnnnnn"), run("nyyyyynn"))
    assert (result.wins, result.losses, result.samples) == (5, 1, 8)
    assert result.scores == (1 / 8, 5 / 8)
    assert result.difference == 0.5
    assert result.interval[0] < 0.5 < result.interval[1]
    assert result.mcnemar == pytest.approx(2 * (1 + 6) / 64)
