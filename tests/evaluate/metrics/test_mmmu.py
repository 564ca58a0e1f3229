"""MMMU's answers, by our strict reading and by the recipe's own, whose quirks are known."""

from pathlib import Path

import pytest

from nvlm.evaluate.metrics import mmmu, mmmu_recipe, open_answer
from nvlm.evaluate.metrics.choice import parse_choice
from nvlm.evaluate.question import Question

OPTIONS = ("red", "a blue car", "green", "dark green")


@pytest.mark.parametrize(
    ("answer", "ours", "recipe"),
    [
        ("B", "B", "B"),
        ("(B)", "B", "B"),
        ("B)", "B", "B"),
        ("B. a blue car", "B", None),  # " B. " is no " B ", and five words are not enough
        ("a", "A", None),
        ("**B**", "B", None),
        ("A\n", "A", None),
        ("$C$", "C", None),
        ("'C'", "C", "C"),
        ("It is 'C'.", "C", None),
        ("答案是B", "B", None),
        ("Aéroport", None, None),
        ("[D]", "D", None),
        (r"\boxed{D}", "D", "D"),
        (r"\answer{C}", "C", "C"),
        (r"\boxed{\text{C}}", "C", None),
        (r"first \boxed{A}, no: \boxed{B}", "B", "A"),  # the recipe takes the first box
        ("Answer:C", "C", "C"),
        ("the answer is c.", "C", None),
        ("(C) because (B) is wrong", "C", "B"),
        ("C) because (B) is wrong", "C", "B"),
        ("At first (B), in the end (C)", "C", "C"),
        ("A or B", None, "B"),
        ("(A) or (B)", None, "B"),
        ("The answer is A or B", None, "B"),
        ("A\nB", None, None),
        ("(A)\n(B)", None, "B"),
        ("A dog is shown", None, "A"),
        ("I am sure that it is D", "D", "D"),
        ("green", "C", None),
        ("dark green", "D", None),
        ("The thing in the picture is dark green", "D", "C"),  # there "green" starts later
        ("The thing in the picture is not greenish", None, "C"),
        ("red or green", None, None),
        ("E", None, None),
        ("", None, None),
        ("  ", None, None),
        ("わからない", None, None),
        ("😀", None, None),
        ("A" * 10_000, None, None),
        ("(" * 10_000, None, None),
        (r"\boxed{" * 2_000, None, None),
    ],
)
def test_choices(answer: str, ours: str | None, recipe: str | None):
    assert parse_choice(answer, OPTIONS) == ours
    assert mmmu_recipe.parse_choice(mmmu_recipe.extract(answer), OPTIONS) == recipe
    assert mmmu_recipe.choose(answer, OPTIONS) == (recipe or "A")


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("A) red\nB) blue\nAnswer: C", ("red", "blue", "green"), "C"),
        ("A) red\nB) blue\nC) green", ("red", "blue", "green"), None),
        ("A) red", ("red", "blue"), "A"),
        ("It is Vitamin D", ("Vitamin D", "Vitamin C", "iron", "zinc"), "A"),
        ("B: it is Vitamin D", ("Vitamin C", "Vitamin D", "iron", "zinc"), "B"),
        ("(A) is wrong, so (B)", ("x", "y", "z"), "B"),
        ("The answer is not A but B", ("x", "y"), "B"),
        ("(C) because (B) is wrong", ("x", "y", "z"), "C"),
    ],
)
def test_what_an_answer_repeats_names_or_denies_is_no_choice(answer, options, expected):
    assert parse_choice(answer, options) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "ours", "recipe"),
    [
        ("5", "5", True, True),
        ("The answer is 5.", "5", True, True),
        ("x = 1,000", "1000", True, True),
        ("3.14159", "3.14", True, True),  # both round to two decimals
        ("-5", "5", False, False),
        ("3 or 5", "5", True, True),
        ("5 of the 7", "5", False, True),  # any number of the text will do for the recipe
        ("yes", "yes", True, True),
        ("Yes it is a dog", "yes", False, False),  # both read what follows "is"
        ("yesterday", "yes", False, True),
        ("the final answer is a blue car", "blue car", True, True),
        ("so it is\nthe answer is blue", "blue", True, True),
        ("", "yes", False, False),
        ("日本", "日本", True, True),
    ],
)
def test_open_answers(answer: str, gold: str, ours: bool, recipe: bool):
    assert open_answer.is_right(answer, [gold]) is ours
    assert mmmu_recipe.is_open_answer_right(answer, [gold]) is recipe


def test_the_unparsable_is_wrong_first_or_drawn():
    asked = [question(number, "A") for number in range(200)]
    verdicts = mmmu.score(asked, ["no idea"] * 200)
    assert all(verdict.unparsable and verdict.score == 0 for verdict in verdicts)
    assert all(verdict.other_scores["first_choice"] == 1 for verdict in verdicts)
    drawn = sum(verdict.other_scores["random"] for verdict in verdicts)
    assert 30 < drawn < 70  # of 200, where one in four is expected
    assert mmmu.score(asked, ["no idea"] * 200) == verdicts
    # A question's draw doesn't depend on which others are scored.
    assert mmmu.score(asked[7:8], ["no idea"]) == verdicts[7:8]


def test_best_constant_weighs_letters_against_open_answers():
    opened = [question(number, "7", options=()) for number in range(3)]
    assert mmmu.best_constant([question(9, "C"), question(10, "C"), question(11, "A")]) == "C"
    assert mmmu.best_constant([question(9, "C"), *opened]) == "7"


def question(number: int, gold: str, options: tuple[str, ...] = OPTIONS) -> Question:
    return Question(
        id=f"validation_Art_{number}",
        images=(Path("x.png"),),
        text="?",
        references=(gold,),
        choices=options,
    )
