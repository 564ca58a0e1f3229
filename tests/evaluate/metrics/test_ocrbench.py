"""OCRBench by our rule and by the recipe's, whose items can score more than a point."""

import pytest

from nvlm.evaluate.metrics import ocrbench
from nvlm.evaluate.question import Question


@pytest.mark.parametrize(
    ("answer", "golds", "dataset", "ours", "recipe"),
    [
        ("It says CENTRE.", ["Centre"], "IIIT5K", 1, 1),
        ("entre", ["centre"], "IIIT5K", 0, 0),
        ("12 main st\nlondon", ["12 Main St London"], "FUNSD", 1, 1),
        ("12 pounds", ["12", "12 pounds"], "SROIE", 1, 2),  # a point for each that matches
        ("anything", [""], "SROIE", 0, 1),  # an empty gold is in every text
        ("", ["x"], "SROIE", 0, 0),
        (r"\frac { a } { b }", [r"\frac{a}{b}"], "HME100k", 1, 1),
        (r"\FRAC{a}{b}", [r"\frac{a}{b}"], "HME100k", 0, 0),  # case counts in formulas
        ("a\tb", ["a b"], "HME100k", 1, 0),  # tabs stay there
        ("1,000", ["1000"], "SROIE", 0, 0),
        ("日本語", ["日本"], "x", 1, 1),
        ("😀", ["😀"], "x", 1, 1),
        ("ab" * 5_000, ["ba"], "x", 1, 1),
    ],
)
def test_cases(answer: str, golds: list[str], dataset: str, ours: float, recipe: float):
    asked = Question(id=0, images=(), text="?", references=tuple(golds), dataset=dataset)
    (verdict,) = ocrbench.score([asked], [answer])
    assert (verdict.score, verdict.other_scores["recipe"]) == (ours, recipe)
    # The publishers' program gives an item one point at most.
    assert verdict.other_scores["official"] == min(1, recipe)
    assert verdict.unparsable == (not answer)
