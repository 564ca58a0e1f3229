"""Intervals against the normal approximation, against drawing every picture by itself, and against
the truth of simulated benchmarks."""

import math
from pathlib import Path

import numpy as np
import pytest

from nvlm.evaluate.answering.answers import Answer
from nvlm.evaluate.metrics import vqa
from nvlm.evaluate.question import Question
from nvlm.evaluate.reporting.bootstrap import corpus_intervals, mean_interval
from nvlm.evaluate.reporting.clusters import picture_clusters, within
from nvlm.evaluate.reporting.compare import compare, mcnemar, sign_flip
from nvlm.evaluate.verdict import CorpusScores

TRUTH, STUDIES = 0.6, 1200


def each(values):
    """Every question has its own picture."""
    return np.arange(len(values))


def test_the_interval_of_a_share_is_that_of_the_normal_approximation():
    values = [1.0] * 300 + [0.0] * 700
    low, high = mean_interval(values, each(values))
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=3e-3)
    assert mean_interval(values, each(values)) == (low, high)


def test_drawing_kinds_of_score_is_drawing_answers():
    rng = np.random.default_rng(7)
    values = rng.gamma(2.0, size=400)
    drawn = rng.choice(values, size=(4000, 400)).mean(axis=1)
    expected = np.percentile(drawn, (2.5, 97.5))
    assert mean_interval(values, each(values)) == pytest.approx(expected, rel=0.01)


def test_drawing_kinds_of_picture_is_drawing_pictures_with_all_their_questions():
    rng = np.random.default_rng(7)
    sizes = rng.integers(1, 9, size=200)
    clusters = rng.permutation(np.repeat(np.arange(200), sizes))  # in any order in the file
    values = rng.choice([0.0, 1 / 3, 2 / 3, 1.0], size=len(clusters)) * (clusters % 3 > 0)
    members = [np.flatnonzero(clusters == picture) for picture in range(200)]
    means = []
    for drawn in rng.integers(200, size=(3000, 200)):
        means.append(values[np.concatenate([members[picture] for picture in drawn])].mean())
    expected = np.percentile(means, (2.5, 97.5))
    assert mean_interval(values, clusters) == pytest.approx(expected, abs=4e-3)


def test_what_never_varies_has_no_width():
    assert mean_interval([0.5] * 20, np.arange(20)) == (0.5, 0.5)
    assert mean_interval([1.0], np.arange(1)) == (1.0, 1.0)


def studies(sizes, agreement):
    """Answers of ``STUDIES`` models with a true score of ``TRUTH`` to sizes[k] questions of
    picture k: (STUDIES, questions), 0 or 1. How hard a picture is comes from a Beta distribution,
    by which two answers to it correlate by ``agreement``."""
    rng = np.random.default_rng(11)
    strength = 1 / agreement - 1
    shape = (STUDIES, len(sizes))
    ease = rng.beta(TRUTH * strength, (1 - TRUTH) * strength, size=shape)
    drawn = rng.random((STUDIES, sum(sizes))) < np.repeat(ease, sizes, axis=1)
    return drawn.astype(np.float64)


def held(intervals, truth):
    """The share of ``intervals`` with the ``truth`` in them."""
    return np.mean([low <= truth <= high for low, high in intervals])


FIVE = [5] * 200
UNEVEN = [1, 2, 3, 4, 5, 6, 7, 12] * 25


def held_if_unclustered(sizes, agreement):
    """What intervals over questions hold: the variance of a mean is 1 + agreement * (B - 1) times
    theirs, for B = sum(size^2) / sum(size) (Kish 1965, section 5.4)."""
    seen = sum(size**2 for size in sizes) / sum(sizes)
    return math.erf(1.96 / math.sqrt(2 * (1 + agreement * (seen - 1))))


@pytest.mark.parametrize(
    ("sizes", "agreement"),
    [(FIVE, 0.3), (UNEVEN, 0.3), ([1] * 300, 0.3)],
    ids=["five questions a picture", "one to twelve", "one"],
)
def test_intervals_hold_the_truth_95_times_of_100(sizes, agreement):
    """And drawn by question, of five a picture, 81 times."""
    runs = studies(sizes, agreement)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    assert 0.93 <= held([mean_interval(run, clusters) for run in runs], TRUTH) <= 0.97
    apart = [mean_interval(run, each(run)) for run in runs]
    assert held(apart, TRUTH) == pytest.approx(held_if_unclustered(sizes, agreement), abs=0.025)


def test_intervals_of_a_paired_difference_hold_it():
    before, after = studies(FIVE, 0.3), studies(FIVE, 0.3)[::-1]
    clusters = np.repeat(np.arange(200), 5)
    differences = after[: STUDIES // 2] - before[: STUDIES // 2]
    assert 0.93 <= held([mean_interval(run, clusters) for run in differences], 0.0) <= 0.97
    assert held([mean_interval(run, each(run)) for run in differences], 0.0) < 0.88


def test_intervals_of_a_score_of_sums_hold_it():
    """Right answers a question, by the ratio that BLEU and its like are made of."""
    sizes = UNEVEN[:80]
    runs = studies(sizes, 0.3)[: STUDIES // 2]
    clusters = np.repeat(np.arange(len(sizes)), sizes)

    def interval(run):
        statistics = np.stack([run, np.ones_like(run)], axis=1)
        scores = CorpusScores(
            statistics=statistics, scores=lambda sums: {"ratio": sums[:, 0] / sums[:, 1]}
        )
        return corpus_intervals(scores, clusters)["ratio"]

    assert 0.93 <= held(map(interval, runs), TRUTH) <= 0.97


def test_a_score_of_sums_is_drawn_with_its_answers():
    """The ratio of two sums, one of which is constant: the interval of a mean."""
    values = np.array([1.0] * 30 + [0.0] * 70)
    corpus = CorpusScores(
        statistics=np.stack([values, np.ones(100)], axis=1),
        scores=lambda sums: {"ratio": sums[:, 0] / sums[:, 1]},
    )
    low, high = corpus_intervals(corpus, each(values))["ratio"]
    assert (low, high) == pytest.approx(mean_interval(values, each(values)), abs=0.02)


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


def test_the_sign_of_each_picture_may_be_the_other():
    """Against all 2^10 ways to give signs to ten pictures' differences."""
    sums = np.array([2.0, 1.0, 1.0, 3.0, -1.0, 2.0, 0.0, 1.0, 1.0, -2.0])
    signs = 1 - 2 * (np.arange(1024)[:, None] >> np.arange(10) & 1)
    exact = np.mean(np.abs(signs @ sums) >= abs(sums.sum()))
    assert sign_flip(sums) == pytest.approx(exact, abs=0.015)
    assert sign_flip(np.array([1.0, 1.0, 1.0, -1.0, 0.0])) == mcnemar(3, 1)
    # Five answers that are better, all of one picture, are one coin's toss and not five.
    assert sign_flip(np.array([5.0, 0.0])) == 1.0
    assert sign_flip(np.zeros(3)) == 1.0


def test_pictures_are_told_by_content(tmp_path: Path):
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one"), ("d", b"three")):
        (tmp_path / name).write_bytes(content)
    asked = [
        Question(id=n, images=(tmp_path / first, tmp_path / "d"), text="?", references=("x",))
        for n, first in enumerate("abacdb")
    ]
    clusters = picture_clusters(asked)
    assert clusters.tolist() == [0, 1, 0, 0, 2, 1]
    assert within(clusters, [1, 4, 5]).tolist() == [0, 1, 0]


def test_a_comparison_counts_wins_losses_and_ties(tmp_path: Path):
    for name in range(8):
        (tmp_path / f"{name}").write_text(f"{name}")
    asked = [
        Question(id=n, images=(tmp_path / f"{n}",), text="?", references=("yes",) * 10)
        for n in range(8)
    ]

    def run(texts: str) -> list[Answer]:
        return [
            Answer(question_id=place, prompt="", text={"y": "yes", "n": "no"}[text])
            for place, text in enumerate(texts)
        ]

    result = compare("VQAv2", vqa, asked, run("ynnnnnnn"), run("nyyyyynn"))
    assert (result.wins, result.losses, result.samples, result.clusters) == (5, 1, 8, 8)
    assert result.scores == (1 / 8, 5 / 8)
    assert result.difference == 0.5
    assert result.interval[0] < 0.5 < result.interval[1]
    assert result.p == pytest.approx(2 * (1 + 6) / 64)
