"""VQA accuracy: an answer counts by how many of ten people gave it.

Normalisation is that of VQAEval (github.com/GT-Vision-Lab/VQA, vqaEval.py), which the recipe uses
through open_flamingo 2.0.1 for TextVQA and VQAv2. Scores are compared with published ones, so its
quirks are kept, and pinned by tests:
- at most 32 periods are taken out, because a regex flag is passed where the count belongs;
- one comma between digits makes all punctuation vanish rather than become a space ("5,000-6,000" is
  "50006000"), and "-5" is "5", while a Unicode minus stays;
- "a" is an article, so for a gold "A" the answers "", "the" and "A." score.

Two accuracies are reported. ``score`` is the recipe's min(1, matches / 3). ``leave_one_out`` is the
official rule: the mean, over the ten, of min(1, matches among the other nine / 3). The official
program skips normalisation where all ten agree, so that "Yes." scores 0 against ten "yes"; here, as
in open_flamingo, answers are always normalised.

TextVQA's own challenge scores by leave-one-out too, on strings that lose every comma and question
mark and have "'s" cut off as a word (EvalAIAnswerProcessor in MMF, LLaVA and lmms-eval): no number
here is that one; the paper's is the recipe's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from nvlm.evaluate.question import Question
from nvlm.evaluate.verdict import Verdict

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
_ARTICLES = frozenset(("a", "an", "the"))
_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(value) for value, word in enumerate(_WORDS.split())} | {"none": "0"}
# VQAEval restores these where one apostrophe is left out: "dont", "couldn'tve", "couldnt've".
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


# VQAv2's validation set has 2.1 million answers, most of them many times.
@lru_cache(maxsize=1 << 18)
def normalise(text: str) -> str:
    """``text`` as VQAEval compares it: no punctuation or articles, digits for number words."""
    kept = text
    vanish = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        if mark in text:
            beside_space = f"{mark} " in text or f" {mark}" in text
            kept = kept.replace(mark, "" if vanish or beside_space else " ")
    kept = _PERIOD.sub("", kept, count=_MOST_PERIODS)
    words = (_NUMBERS.get(word, word) for word in kept.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def recipe_accuracy(answer: str, golds: Sequence[str]) -> float:
    """min(1, matches / 3) of normalised strings."""
    return min(1.0, golds.count(answer) / 3)


def leave_one_out_accuracy(answer: str, golds: Sequence[str]) -> float:
    """The official rule on normalised strings: each person's answer is left out in turn."""
    matches = golds.count(answer)
    left_out = matches * min(1.0, (matches - 1) / 3) + (len(golds) - matches) * min(
        1.0, matches / 3
    )
    return left_out / len(golds)


def score(questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
    """Both accuracies of each answer. Unparsable: nothing is left after normalisation."""
    verdicts = []
    for question, answer in zip(questions, answers, strict=True):
        read = normalise(answer)
        official = normalise_one_line(answer)
        golds, official_golds = _golds(question.references)
        verdicts.append(
            Verdict(
                score=recipe_accuracy(read, golds),
                read_as=read,
                unparsable=not read,
                other_scores={"leave_one_out": leave_one_out_accuracy(official, official_golds)},
            )
        )
    return verdicts


def best_constant(questions: Sequence[Question]) -> str:
    """The normalised answer whose recipe accuracies sum to most; the first of equals."""
    worth: Counter[str] = Counter()
    for question in questions:
        for answer, matches in Counter(map(normalise, question.references)).items():
            worth[answer] += min(3, matches)
    return max(worth, key=lambda answer: worth[answer])


@lru_cache(maxsize=1 << 18)
def normalise_one_line(text: str) -> str:
    """As the official program does: line breaks and tabs become spaces first."""
    return normalise(text.replace("\n", " ").replace("\t", " ").strip())


# A report scores the answers and the best constant against the same references.
@lru_cache(maxsize=1 << 18)
def _golds(references: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The references, normalised as the recipe and as the official program do."""
    return list(map(normalise, references)), list(map(normalise_one_line, references))


def _restored() -> dict[str, str]:
    """A contraction for each way to leave out one of its apostrophes."""
    restored = {}
    for word in _CONTRACTIONS.split():
        for place, character in enumerate(word):
            if character == "'":
                restored[word[:place] + word[place + 1 :]] = word
    # Upstream maps this one the wrong way round.
    return restored | {"somebody'd": "somebodyd"}


_RESTORED = _restored()
