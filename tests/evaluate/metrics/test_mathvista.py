"""MathVista by rules: ours, strict, and the recipe's with its quirks."""

import pytest

from nvlm.evaluate.metrics import mathvista
from nvlm.evaluate.question import Question

CHOICES = ("145°", "35°", "yes")


@pytest.mark.parametrize(
    ("answer", "kind", "precision", "gold", "ours", "recipe"),
    [
        ("5", "integer", None, "5", True, True),
        ("-5", "integer", None, "5", False, True),  # the recipe loses the sign
        ("5.", "integer", None, "5", True, True),
        ("5.7", "integer", None, "5", False, False),
        ("5.00", "integer", None, "5", True, True),
        ("1,000", "integer", None, "1000", True, True),
        ("none", "integer", None, "0", False, True),
        ("The answer is 7.", "integer", None, "7", True, True),
        ("There are 3 dogs and 4 cats, so the answer is 7", "integer", None, "7", True, True),
        ("There are 7 dogs", "integer", None, "7", True, False),
        ("7 of 10", "integer", None, "7", False, False),  # the last number counts
        ("3 + 4 = 7", "integer", None, "7", True, False),
        (r"So \boxed{7}, not 8", "integer", None, "7", True, False),
        ("3.14159", "float", 2, "3.14", True, True),
        ("3.149", "float", 2, "3.14", False, True),  # there cut, here rounded
        ("the answer is 3.14159", "float", 2, "3.14", True, False),  # not cut within a text
        ("2.5%", "float", 1, "2.5", True, True),
        ("$5-6", "float", 1, "5", False, False),
        ("0.5", "float", 1, "0.5", True, True),
        ("[1, 2]", "list", None, "[1, 2]", True, True),
        ("It is [1,2].", "list", None, "[1, 2]", True, False),
        ("[2, 1]", "list", None, "[1, 2]", False, False),
        ("1 and 2", "list", None, "[1, 2]", False, False),
        ("Yes.", "text", None, "yes", True, True),
        ("yesterday", "text", None, "yes", False, False),
        ("A or B", "integer", None, "5", False, False),
        ("5\n6", "integer", None, "6", True, False),
        ("", "integer", None, "5", False, False),
        ("the", "integer", None, "5", False, False),  # normalises to nothing: a crash there
        ("五", "integer", None, "5", False, False),
        ("😀", "integer", None, "5", False, False),
        ("9" * 10_000, "integer", None, "5", False, False),
        ("=" * 10_000, "integer", None, "5", False, False),
        ("answer " * 2_000, "float", 1, "5", False, False),
    ],
)
def test_free_form(
    answer: str, kind: str, precision: int | None, gold: str, ours: bool, recipe: bool
):
    asked = Question(
        id="1", images=(), text="?", references=(gold,), answer_type=kind, precision=precision
    )
    (verdict,) = mathvista.score([asked], [answer])
    assert (bool(verdict.score), bool(verdict.other_scores["recipe"])) == (ours, recipe)


@pytest.mark.parametrize(
    ("answer", "gold", "ours", "first", "recipe"),
    [
        ("B", "B", True, True, True),
        ("(C) because (B) is wrong", "C", True, True, False),
        (r"\boxed{B}", "B", True, True, False),  # without extraction, unlike MMMU: the first choice
        ("35°", "B", True, True, False),
        ("A or B", "B", False, False, True),
        ("no idea", "A", False, True, True),
        ("", "A", False, True, True),
    ],
)
def test_choices(answer: str, gold: str, ours: bool, first: bool, recipe: bool):
    asked = Question(id="1", images=(), text="?", references=(gold,), choices=CHOICES)
    (verdict,) = mathvista.score([asked], [answer])
    others = verdict.other_scores
    assert (bool(verdict.score), bool(others["first_choice"])) == (ours, first)
    assert bool(others["recipe"]) == recipe


def test_best_constant_is_a_letter_or_a_common_number():
    def free(number: int) -> Question:
        return Question(id=number, images=(), text="?", references=("2",), answer_type="integer")

    lettered = Question(id=9, images=(), text="?", references=("C",), choices=CHOICES)
    assert mathvista.best_constant([lettered, free(1), free(2)]) == "2"
    assert mathvista.best_constant([lettered, free(1)]) == "C"
