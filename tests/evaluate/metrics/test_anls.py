"""ANLS by definition, by the recipe and by the organisers; the distances are counted by hand."""

import pytest

from nvlm.evaluate.metrics import anls
from nvlm.evaluate.question import Question


def question(*golds: str) -> Question:
    return Question(id=1, images=(), text="?", references=golds)


@pytest.mark.parametrize(
    ("answer", "golds", "ours", "recipe", "official"),
    [
        ("kitten", ["sitting"], 1 - 3 / 7, 1 - 3 / 7, 1 - 3 / 7),
        ("abcd", ["abxy"], 0, 0, 0.5),  # a distance of one half is too much
        ("abc", ["abx", "zzz"], 2 / 3, 2 / 3, 2 / 3),  # the best gold counts
        ("ITC  Limited", ["itc limited"], 1, 1, 1),
        ("itc limited.", ["itc limited"], 11 / 12, 1, 11 / 12),  # the recipe drops punctuation
        ("-5", ["5"], 0, 1, 0.5),
        ("5.", ["5"], 0, 1, 0.5),  # half of the text is wrong
        ("1,000", ["1000"], 4 / 5, 1, 4 / 5),
        ("The two dogs.", ["two dogs"], 8 / 13, 1, 8 / 13),
        ("none", ["0"], 0, 1, 0),
        ("$5-6", ["$5 6"], 3 / 4, 1, 3 / 4),
        ("", [""], 1, 1, 1),
        ("", ["a"], 0, 1, 0),  # an article is nothing to the recipe
        ("straße", ["strasse"], 1 - 2 / 7, 1 - 2 / 7, 1 - 2 / 7),
        ("ßx", ["ßy"], 0, 1 - 1 / 3, 1 - 1 / 3),  # in capitals three letters long
        ("日本語", ["日本"], 2 / 3, 2 / 3, 2 / 3),
        ("😀", ["😀"], 1, 1, 1),
        ("x" * 10_000, ["x" * 9_000], 0.9, 0.9, 0.9),
        (" abc   ", ["abd"], 2 / 3, 2 / 3, 1 - 1 / 7),  # white space makes the length there
        ("one\ntwo", ["one two"], 1, 1, 1),
    ],
)
def test_cases(answer: str, golds: list[str], ours: float, recipe: float, official: float):
    (verdict,) = anls.score([question(*golds)], [answer])
    assert verdict.score == pytest.approx(ours)
    assert verdict.other_scores["recipe"] == pytest.approx(recipe)
    assert verdict.other_scores["official"] == pytest.approx(official)
    assert verdict.unparsable == (not answer)


def test_best_constant_is_close_to_the_most_golds():
    asked = [question(gold) for gold in ("page 12", "page 13", "page 14", "x", "x")]
    assert anls.best_constant(asked) == "page 12"
