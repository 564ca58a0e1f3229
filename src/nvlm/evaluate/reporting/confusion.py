"""What was taken for what: pairs of truth and answer, for DVC's confusion plot.

One row a question. Only the commonest answers have a name, so that the plot can be read; the rest
is "(other)", and what could not be read "(unparsable)".
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from nvlm.evaluate.question import Question
from nvlm.evaluate.verdict import Verdict

NAMED = 15
OTHER, UNPARSABLE = "(other)", "(unparsable)"
LONGEST = 30  # characters of a name


def confusion_table(questions: Sequence[Question], verdicts: Sequence[Verdict]) -> str:
    """CSV with the columns ``truth`` and ``answer``.

    The truth is the commonest reference, compared in lower case; an answer that scores 1 or more
    (full marks, but for CIDEr, which goes to 10) counts as the truth, however it was put.
    """
    truths = [_commonest(question) for question in questions]
    named = {name for name, _ in Counter(truths).most_common(NAMED)}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("truth", "answer"))
    for truth, verdict in zip(truths, verdicts, strict=True):
        answer = truth if verdict.score >= 1 else _short(verdict.read_as)
        if verdict.unparsable:
            answer = UNPARSABLE
        elif answer not in named:
            answer = OTHER
        table.writerow((truth if truth in named else OTHER, answer))
    return text.getvalue()


def _commonest(question: Question) -> str:
    counted = Counter(map(_short, question.references))
    return counted.most_common(1)[0][0]


@lru_cache(maxsize=1 << 16)
def _short(text: str) -> str:
    return " ".join(text.lower().split())[:LONGEST]
