"""Relaxed accuracy by our rule and by the recipe's; the cases are worked out by hand."""

import pytest

from nvlm.errors import UserError
from nvlm.evaluate.metrics import relaxed
from nvlm.evaluate.question import Question


def question(*golds: str) -> Question:
    return Question(id=1, images=(), text="?", references=golds)


@pytest.mark.parametrize(
    ("answer", "gold", "ours", "recipe"),
    [
        ("10.5", "10", True, True),  # 5 % above
        ("9.5", "10", True, True),
        ("10.51", "10", False, False),
        ("1.05", "1", True, True),
        ("0", "0", True, True),
        ("0.01", "0", False, False),
        ("-5", "-5", True, True),
        ("-3", "3", False, True),  # the recipe loses signs
        ("-10.2", "-10", True, True),
        ("5.", "5", True, True),
        ("5%", "5", True, True),
        ("12 %", "12%", True, True),
        ("1,000", "1000", True, True),
        ("$5", "5", True, False),
        ("£2.50", "2.5", True, False),
        ("$5-6", "5", False, False),
        ("nan", "nan", True, False),  # a word; for the recipe a number that equals nothing
        ("inf", "inf", True, True),
        ("none", "0", False, True),  # VQAEval makes it 0
        ("two", "2", False, True),
        ("The two dogs.", "the two dogs", True, True),
        ("Red", "red", True, True),
        ("the red", "red", False, True),  # articles go
        ("red\nblue", "red", False, False),
        ("5 or 6", "5", False, False),
        ("", "5", False, False),
        ("", "the", False, True),
        ("日本", "日本", True, True),
        ("😀", "😀", True, True),
        ("9" * 10_000, "9", False, False),
        ("(" * 10_000, "9", False, False),
        ("1e3", "1000", True, True),
    ],
)
def test_cases(answer: str, gold: str, ours: bool, recipe: bool):
    (verdict,) = relaxed.score([question(gold)], [answer])
    assert (bool(verdict.score), bool(verdict.other_scores["recipe"])) == (ours, recipe)
    assert verdict.unparsable == (not answer)


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("10.5", "10", True),
        ("10.51", "10", False),
        ("1.05", "1", False),  # by a rounding error: 1.05 - 1 is 0.05000000000000004
        ("-3", "3", False),
        ("-10.2", "-10", True),
        ("5.", "5", True),
        (" 5\n", "5", True),
        ("5%", "5", False),  # 0.05
        ("12%", "0.12", True),
        ("12 %", "12%", True),
        ("12%%", "12%", True),
        ("%", "%", True),  # no number
        ("1,000", "1000", False),
        ("$5", "5", False),
        ("1e3", "1000", True),
        ("1_000", "1000", True),  # as Python reads it
        ("0.0", "0", False),  # a gold of 0 must be met to the letter
        ("nan", "nan", False),
        ("Red", "red", True),
        ("red.", "red", False),
        ("red ", "red", False),
        ("", "", True),
    ],
)
def test_pix2struct(answer: str, gold: str, right: bool):
    (verdict,) = relaxed.score([question(gold)], [answer])
    assert bool(verdict.other_scores["pix2struct"]) == right


def test_one_gold_is_expected():
    with pytest.raises(UserError, match="question 1 has 2 answers"):
        relaxed.score([question("1", "2")], ["1"])


def test_best_constant_is_the_number_that_most_lie_around():
    asked = [question(gold) for gold in ("100", "102", "98", "yes", "yes")]
    assert relaxed.best_constant(asked) == "100"
