"""What an unreadable answer to a multiple-choice question is taken for.

Strictly it is wrong. Programs that guess report several points more, so that two guesses are scored
beside: the first choice (Megatron-LM), and a seeded draw (MMMU's own program).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from string import ascii_uppercase

from nvlm.evaluate.question import Question

# Of MMMU's own draw, though not its stream: a draw depends on its question only.
SEED = 42


def readings(question: Question, chosen: str | None) -> Mapping[str, str]:
    """The letters that each way to guess scores: ``first_choice``, ``random``."""
    letters = ascii_uppercase[: len(question.choices)]
    drawn = random.Random(f"{SEED} {question.id}").choice(letters)
    return {"first_choice": chosen or letters[0], "random": chosen or drawn}
