"""CIDEr against pycocoevalcap's scorer and against cases worked out by hand."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from nvlm.evaluate.metrics import cider
from nvlm.evaluate.question import Question

# Scores printed by pycocoevalcap 1.2 (PTBTokenizer under OpenJDK 17, then Cider().compute_score)
# for these references and answers, the answers lower-cased and without trailing periods.
REFERENCES = [
    ("A man rides a horse on the beach.", "A person riding a brown horse.", "Man's horse (wet)"),
    ("Two dogs play with a ball in the grass.", "Dogs playing on green grass"),
    ("A black-and-white photo of a U.S. street.", "an old photo of a city street in the U.S."),
    ("A red bus isn't moving.", "A red double-decker bus parked at a stop", "a bus"),
]
ANSWERS = [
    "a man riding a horse on the beach.",
    "Two dogs play with a ball",
    "a photo of a city street in the U.S.",
    "a green dog",
]
PUBLISHED = (2.8088088740855173, 3.780700635792263, 4.5211683156883335, 0.0)


def questions(references: Sequence[Sequence[str]]) -> list[Question]:
    return [
        Question(id=place, images=(Path("x.jpg"),), text="", references=tuple(captions))
        for place, captions in enumerate(references)
    ]


def test_scores_are_those_of_the_published_program():
    verdicts = cider.score(questions(REFERENCES), ANSWERS)
    assert [verdict.score for verdict in verdicts] == pytest.approx(PUBLISHED, abs=1e-9)
    assert verdicts[2].read_as == "a photo of a city street in the u.s"


def test_one_reference_one_answer_by_hand():
    """Two images, "a cat" and "a dog"; "a" is in both, so its weight is 0.

    For the answer "a cat" of the first: unigrams: cosine 1 ("cat"); bigrams: 1 ("a cat"); no
    longer n-grams. The mean over four orders, times 10: 5. "cat" alone: unigrams 1, bigrams 0, one
    bigram shorter: 10/4 * exp(-1/72).
    """
    asked = questions([["a cat"], ["a dog"]])
    first, second = cider.score(asked, ["A cat.", "dog"])
    assert first.score == pytest.approx(5.0)
    assert second.score == pytest.approx(2.5 * math.exp(-1 / 72))


def test_an_image_alone_scores_nothing():
    (verdict,) = cider.score(questions([["a cat"]]), ["a cat"])
    assert verdict.score == 0


def test_the_unparsable_is_what_holds_no_token():
    asked = questions([["a cat"], ["a dog"], ["a cow"]])
    verdicts = cider.score(asked, ["", "...", "😀"])
    assert [verdict.unparsable for verdict in verdicts] == [True] * 3
    assert [verdict.score for verdict in verdicts] == [0] * 3


def test_best_constant_is_the_best_of_all_references():
    asked = questions(REFERENCES)
    captions = [caption for references in REFERENCES for caption in references]
    means = {
        caption: sum(verdict.score for verdict in cider.score(asked, [caption] * len(asked)))
        for caption in captions
    }
    assert cider.best_constant(asked) == max(captions, key=lambda caption: means[caption])
