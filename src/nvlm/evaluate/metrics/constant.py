"""The best constant answer where trying every one would take hours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from nvlm.evaluate.question import Question
from nvlm.evaluate.verdict import Verdict

Score = Callable[[Sequence[Question], Sequence[str]], list[Verdict]]

# What scores most over a benchmark is among its commonest answers.
MOST_TRIED = 100


def best_of_commonest(
    questions: Sequence[Question], score: Score, others: Iterable[str] = ()
) -> str:
    """Of ``others`` and the ``MOST_TRIED`` commonest references, the one that scores most.

    Of equals the first: ``others`` in their order, then the commoner.
    """
    counted = Counter(answer for question in questions for answer in question.references)
    candidates = [*others, *(answer for answer, _ in counted.most_common(MOST_TRIED))]
    return max(
        dict.fromkeys(candidates),
        key=lambda answer: sum(
            verdict.score for verdict in score(questions, [answer] * len(questions))
        ),
    )
