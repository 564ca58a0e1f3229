"""One error out of many ranks, under a torchrun of one's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import wraps

from nvlm.errors import UserError


def told_once(main: Callable[[], None]) -> Callable[[], None]:
    """``main`` of a script that an outer launcher starts once a rank.

    The first rank that raises UserError tells it, wherever it runs; the others end in silence.
    """

    @wraps(main)
    def wrapped() -> None:
        try:
            main()
        except UserError:
            if "RANK" in os.environ and not _is_first_to_fail():
                raise SystemExit(2) from None
            raise

    return wrapped


def _is_first_to_fail() -> bool:
    """Whether no other rank has asked this; torchrun's store, at the first node, counts.

    Without an answer from the store the error is told rather than lost.
    """
    from torch._C._distributed_c10d import TCPStore

    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=10),
        )
        return store.add("nvlm/failed", 1) == 1
    except (KeyError, RuntimeError):
        return True
