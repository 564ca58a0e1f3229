"""CIDEr and BLEU of a thousand captions against pycocoevalcap's, Java tokenizer included.

``reference/make_caption_scores.py`` says how the scores were obtained.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.evaluate.metrics.reference.captions import captions

from nvlm.evaluate.metrics import bleu, cider
from nvlm.evaluate.question import Question

PUBLISHED = json.loads((Path(__file__).parent / "reference/caption_scores.json").read_text())


def thousand() -> tuple[list[Question], list[str]]:
    answers, references = captions()
    questions = [
        Question(id=place, images=(), text="", references=tuple(group))
        for place, group in enumerate(references)
    ]
    return questions, answers


def test_cider_of_each_caption_and_of_all_is_the_published_programs():
    questions, answers = thousand()
    scores = [verdict.score for verdict in cider.score(questions, answers)]
    assert scores == pytest.approx(PUBLISHED["cider_by_image"], abs=1e-6)
    assert np.mean(scores) == pytest.approx(PUBLISHED["cider"], abs=1e-6)


def test_bleu_is_the_published_programs():
    questions, answers = thousand()
    corpus = bleu.corpus_scores(questions, answers)
    scores = corpus.scores(corpus.statistics.sum(axis=0, keepdims=True))
    assert list(scores) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4"]
    given = [float(score[0]) for score in scores.values()]
    assert given == pytest.approx(PUBLISHED["bleu"], abs=1e-6)


def test_bleu_by_hand():
    """ "the cat sat" for "the cat sat down": all n-grams right, three tokens for four.

    Every precision but that of the four-grams, of which there are none, is 1; the penalty is
    exp(1 - 4/3). "the the" has one "the" too many: 1/2, and no penalty against "the cat".
    """
    questions = [
        Question(id=1, images=(), text="", references=("The cat sat down.", "A dog, I am sure.")),
        Question(id=2, images=(), text="", references=("the cat",)),
    ]
    first = bleu.corpus_scores(questions[:1], ["the cat sat."])
    penalty = float(np.exp(1 - 4 / 3))
    scores = first.scores(first.statistics)
    assert [scores[f"bleu_{n}"][0] for n in (1, 2, 3)] == pytest.approx([penalty] * 3)
    assert scores["bleu_4"][0] == pytest.approx((1e-15 / 1e-9) ** 0.25 * penalty)
    second = bleu.corpus_scores(questions[1:], ["the the"])
    assert second.scores(second.statistics)["bleu_1"][0] == pytest.approx(0.5)


def test_the_captions_are_as_awkward_as_they_should_be():
    answers, references = captions()
    assert len(answers) == len(references) == 1000
    assert Counter(map(len, references)).keys() == {2, 3, 4, 5}
    together = " ".join([*answers, *(caption for group in references for caption in group)])
    for awkward in ("😀", "£", "½", "'s", "'S", "(", "{", "--", "–", "’", "猫", "Ph.D.", '"'):
        assert awkward in together
