"""Whether an open answer holds the right one, read strictly.

Better than the recipe's rules (``metrics.mmmu_recipe``) in two ways: a gold text must stand in the
answer as whole words, so that "yes" is not in "yesterday"; and a gold number must be the last
number of the part that states the answer, not any number in the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from nvlm.evaluate.metrics.mmmu_recipe import key_parts

_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?|(?<![\w.])-?\.\d+")


def is_right(answer: str, golds: Sequence[str]) -> bool:
    """Whether ``answer`` states one of ``golds``."""
    parts = key_parts(answer)
    return any(_states(part, gold) for part in parts for gold in golds)


def _states(part: str, gold: str) -> bool:
    number = _number(gold)
    if number is None:
        words = re.escape(" ".join(gold.lower().split()))
        if not words:
            return False
        return re.search(rf"(?<!\w){words}(?!\w)", " ".join(part.split())) is not None
    stated = _NUMBER.findall(part)
    return bool(stated) and _number(stated[-1]) == number


def _number(text: str) -> float | None:
    """``text`` as a number, rounded to two decimals as in the benchmark, if it is one."""
    try:
        return round(float(text.replace(",", "")), 2)
    except ValueError:
        return None
