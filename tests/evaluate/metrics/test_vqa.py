"""VQA accuracy against cases worked out from the published rules by hand."""

from pathlib import Path

import pytest

from nvlm.evaluate.metrics.vqa import (
    best_constant,
    leave_one_out_accuracy,
    normalise,
    recipe_accuracy,
    score,
)
from nvlm.evaluate.question import Question


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-5", "5"),
        ("−5", "−5"),  # the Unicode minus is no ASCII hyphen
        ("5.", "5"),
        ("3.14", "3.14"),
        ("1,000", "1000"),
        ("The two dogs.", "2 dogs"),
        ("none", "0"),
        ("Ten", "10"),
        ("$5-6", "$5 6"),
        ("5,000-6,000", "50006000"),  # a comma between digits makes all punctuation vanish
        ("a.b.c", "abc"),
        ("black - white", "black white"),
        ("black-white", "black white"),
        ("yes - no-one", "yes noone"),  # beside a space once, removed everywhere
        ("dont", "don't"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),  # only one apostrophe is ever restored
        ("somebody'd", "somebodyd"),  # upstream's entry is the wrong way round
        ("A", ""),
        ("", ""),
        ("yes\nno", "yes no"),
        ("日本!", "日本"),
        ("😀", "😀"),
        ("." * 40, "." * 8),  # at most 32 periods are taken out
        ("x" * 10_000, "x" * 10_000),
    ],
)
def test_normalisation(text: str, expected: str):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("matches", "recipe", "official"),
    [
        (0, 0.0, 0.0),
        (1, 1 / 3, (0 + 9 * 1 / 3) / 10),
        (2, 2 / 3, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        (3, 1.0, (3 * 2 / 3 + 7) / 10),
        (4, 1.0, 1.0),
        (10, 1.0, 1.0),
    ],
)
def test_accuracies_by_number_of_people(matches: int, recipe: float, official: float):
    golds = ["red"] * matches + ["blue"] * (10 - matches)
    assert recipe_accuracy("red", golds) == pytest.approx(recipe)
    assert leave_one_out_accuracy("red", golds) == pytest.approx(official)


def test_answers_are_normalised_though_all_ten_agree():
    """The official program compares them raw there, and scores 0."""
    (verdict,) = score([question("yes")], ["Yes."])
    assert (verdict.score, verdict.other_scores["leave_one_out"]) == (1.0, 1.0)


def test_the_article_a_costs_a_gold_letter():
    """Known of the recipe, whose numbers these are: for "A" nothing at all is right."""
    verdicts = score([question("A")] * 4, ["", "the", "A.", "B"])
    assert [verdict.score for verdict in verdicts] == [1, 1, 1, 0]
    assert [verdict.unparsable for verdict in verdicts] == [True, True, True, False]


def test_only_the_official_rule_takes_a_line_break_for_a_space_first():
    (verdict,) = score([question("x yz")], ["x-\ny-z"])
    assert (verdict.score, verdict.other_scores["leave_one_out"]) == (0.0, 1.0)


def test_best_constant_sums_the_worth_of_an_answer():
    questions = [question("yes"), question("Yes!"), question(*["no"] * 5, *["yes"] * 5)]
    assert best_constant(questions) == "yes"


def question(*answers: str) -> Question:
    ten = answers * (10 // len(answers))
    return Question(id=0, images=(Path("x.png"),), text="?", references=ten)
