"""AI2D and RealWorldQA: letters read strictly, and as the recipe compares them."""

import pytest

from nvlm.errors import UserError
from nvlm.evaluate.metrics import exact
from nvlm.evaluate.question import Question

AI2D = "Which eats grass?\nA. fox\nB. rabbit\nC. eagle\nAnswer with the option's letter."


def ai2d(gold: str, text: str = AI2D) -> Question:
    return Question(id=1, images=(), text=text, references=(gold,))


@pytest.mark.parametrize(
    ("answer", "gold", "ours", "recipe"),
    [
        ("A", "A", True, True),
        ("A.", "A", True, True),
        ("", "A", False, True),  # "a" is an article to VQAEval, and so is the gold
        ("the", "A", False, True),
        ("B", "B", True, True),
        ("b", "B", True, True),
        ("(B)", "B", True, True),
        ("B. rabbit", "B", True, False),
        ("rabbit", "B", True, False),
        (r"\boxed{B}", "B", True, False),
        ("A or B", "B", False, False),
        ("(C) because (B) is wrong", "C", True, False),
        ("B\nC", "B", False, False),
        ("D", "B", False, False),
        ("-5", "B", False, False),
        ("うさぎ", "B", False, False),
        ("😀", "B", False, False),
        ("B" * 10_000, "B", False, False),
    ],
)
def test_letters(answer: str, gold: str, ours: bool, recipe: bool):
    (verdict,) = exact.score([ai2d(gold)], [answer])
    assert (bool(verdict.score), bool(verdict.other_scores["recipe"])) == (ours, recipe)


def test_the_unreadable_is_wrong_the_first_choice_or_drawn():
    (verdict,) = exact.score([ai2d("A")], ["no idea"])
    assert verdict.unparsable
    assert verdict.score == 0
    assert verdict.other_scores["first_choice"] == 1


@pytest.mark.parametrize(
    ("answer", "gold", "ours", "recipe"),
    [
        ("No.", "no", True, True),
        ("two", "2", True, True),
        ("The two dogs.", "2 dogs", True, True),
        ("", "a", False, True),
        ("yesterday", "yes", False, False),
    ],
)
def test_open_answers_are_equal_or_wrong(answer: str, gold: str, ours: bool, recipe: bool):
    (verdict,) = exact.score([ai2d(gold, "Is it?")], [answer])
    assert (bool(verdict.score), bool(verdict.other_scores["recipe"])) == (ours, recipe)


def test_a_letter_without_options_in_the_text_is_a_word():
    (verdict,) = exact.score([ai2d("B", "Which letter is on the sign?")], ["b"])
    assert (verdict.score, verdict.read_as) == (1, "b")


def test_one_gold_is_expected():
    asked = Question(id=7, images=(), text="?", references=("A", "B"))
    with pytest.raises(UserError, match="question 7 has 2 answers"):
        exact.score([asked], ["A"])
