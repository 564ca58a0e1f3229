"""A sample that a row had no room for, or that nobody could read: noted, so that it can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """A sample that no row holds as it is stored."""

    key: str  # DATASET/KEY
    kind: Literal["fewer tiles", "too long", "unreadable"]  # the last two are left out
    tokens: int  # that it has with all its tiles; 0 where no image can be decoded


def dataset_of(key: str) -> str:
    """The dataset in a sample's key."""
    return key.partition("/")[0]
