"""CIDEr of captions, without Java: a caption's n-grams against those of its image's references.

Vedantam et al. 2015 (arXiv 1411.5726), as github.com/tylin/coco-caption computes it, which the
recipe reports (0 to 10; printed x100). Kept from there: tf-idf over n-grams of 1 to 4 tokens, a
caption's weight clipped at the reference's, a Gaussian penalty (sigma 6) on the difference of
lengths counted in bigrams, document frequencies from the references of the images that are scored
and of no others. So one image alone scores 0: every n-gram is in "all" images.

Before, as in the recipe, an answer loses its trailing periods and its capitals.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from nvlm.evaluate.metrics.ptb import tokenize
from nvlm.evaluate.question import Question
from nvlm.evaluate.verdict import Verdict

ORDERS = 4
SIGMA = 6.0
SCALE = 10.0

NGram = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Vector:
    """A caption: how often each n-gram comes, its tf-idf norm by order, its length in bigrams."""

    counts: Mapping[NGram, int]
    norms: tuple[float, ...]
    bigrams: int


class Cider:
    """The references of all images, ready to score captions against."""

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]) -> None:
        """``references``: for each image its captions, each a list of tokens."""
        counted = [[count_ngrams(caption) for caption in captions] for captions in references]
        self._images = len(counted)
        self._document_frequency = Counter(
            ngram for captions in counted for ngram in set().union(*captions)
        )
        self._references = [[self._vector(counts) for counts in captions] for captions in counted]

    def score(self, image: int, caption: Sequence[str]) -> float:
        """CIDEr of ``caption`` for the ``image``-th of the references."""
        candidate = self._vector(count_ngrams(caption))
        references = self._references[image]
        total = sum(self._similarity(candidate, reference) for reference in references)
        return SCALE * total / (ORDERS * len(references))

    def best_constant(self, captions: Iterable[Sequence[str]]) -> int:
        """Place in ``captions`` of the one with the highest mean over all images.

        An index of the references by n-gram makes it one look-up an n-gram, where scoring every
        caption on every image would take hours for COCO.
        """
        # n-gram -> (its count in a reference, the reference's length) -> summed weight
        index: dict[NGram, dict[tuple[int, int], float]] = defaultdict(lambda: defaultdict(float))
        for references in self._references:
            for reference in references:
                for ngram, count in reference.counts.items():
                    if norm := reference.norms[len(ngram) - 1]:
                        weight = self._idf(ngram) ** 2 * count / (norm * len(references))
                        index[ngram][count, reference.bigrams] += weight
        means = [self._mean(index, self._vector(count_ngrams(caption))) for caption in captions]
        return means.index(max(means))

    def _mean(
        self, index: Mapping[NGram, Mapping[tuple[int, int], float]], candidate: _Vector
    ) -> float:
        total = 0.0
        for ngram, count in candidate.counts.items():
            if ngram in index and (norm := candidate.norms[len(ngram) - 1]):
                for (reference_count, bigrams), weight in index[ngram].items():
                    penalty = _length_penalty(candidate.bigrams - bigrams)
                    total += min(count, reference_count) * weight * penalty / norm
        return total

    def _idf(self, ngram: NGram) -> float:
        return math.log(self._images) - math.log(max(1, self._document_frequency[ngram]))

    def _vector(self, counts: Mapping[NGram, int]) -> _Vector:
        squares = [0.0] * ORDERS
        for ngram, count in counts.items():
            squares[len(ngram) - 1] += (count * self._idf(ngram)) ** 2
        return _Vector(
            counts=counts,
            norms=tuple(math.sqrt(square) for square in squares),
            bigrams=sum(count for ngram, count in counts.items() if len(ngram) == 2),
        )

    def _similarity(self, candidate: _Vector, reference: _Vector) -> float:
        """Clipped cosine, summed over the orders, times the length penalty."""
        products = [0.0] * ORDERS
        for ngram, count in candidate.counts.items():
            if reference_count := reference.counts.get(ngram, 0):
                clipped = min(count, reference_count) * reference_count
                products[len(ngram) - 1] += clipped * self._idf(ngram) ** 2
        cosines = (
            product / (norm * reference_norm)
            for product, norm, reference_norm in zip(
                products, candidate.norms, reference.norms, strict=True
            )
            if norm and reference_norm
        )
        return sum(cosines) * _length_penalty(candidate.bigrams - reference.bigrams)


def score(questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
    """CIDEr of each answer. Unparsable: no token is left once punctuation is dropped."""
    cider = _cider(questions)
    verdicts = []
    for image, answer in enumerate(answers):
        read = answer_tokens(answer)
        verdicts.append(
            Verdict(
                score=cider.score(image, read),
                read_as=" ".join(read),
                unparsable=not read,
            )
        )
    return verdicts


def best_constant(questions: Sequence[Question]) -> str:
    """The reference caption, of any image, that scores most when it is given to all images."""
    captions = list(
        dict.fromkeys(caption for question in questions for caption in question.references)
    )
    return captions[_cider(questions).best_constant(answer_tokens(caption) for caption in captions)]


def _cider(questions: Sequence[Question]) -> Cider:
    return Cider([[tokens(caption) for caption in asked.references] for asked in questions])


# BLEU reads the same captions again.
@lru_cache(maxsize=1 << 20)
def tokens(caption: str) -> tuple[str, ...]:
    """The tokens of a reference.

    Upstream joins the tokens and splits at white space again, and thereby within the one token that
    the tokenizer makes of "5 24/7".
    """
    return tuple(" ".join(tokenize(caption)).split())


def answer_tokens(answer: str) -> tuple[str, ...]:
    """The tokens of an answer, which loses its trailing periods and its capitals first."""
    return tokens(answer.rstrip(".").lower())


def count_ngrams(caption: Sequence[str]) -> Counter[NGram]:
    """How often each n-gram of 1 to ``ORDERS`` tokens comes."""
    return Counter(
        tuple(caption[start : start + order])
        for order in range(1, ORDERS + 1)
        for start in range(len(caption) - order + 1)
    )


def _length_penalty(difference: int) -> float:
    return math.exp(-(difference**2) / (2 * SIGMA**2))
