"""One error out of many ranks, and one end, under a torchrun of one's own.

A torchrun stops its own ranks when one of them fails; those of other machines would wait for the
lost one for as long as a collective may take, ten minutes or thirty. Here they learn of the failure
from torchrun's store, which all machines reach.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING

from nvlm.errors import UserError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

# What a rank gets to end by itself once another has failed, or its torchrun is gone.
SECONDS_TO_END = 5


def told_once(main: Callable[[], None]) -> Callable[[], None]:
    """``main`` of a script that an outer launcher starts once a rank.

    The first rank that raises UserError tells it, wherever it runs; the others end in silence, and
    soon, whatever the error was.
    """

    @wraps(main)
    def wrapped() -> None:
        if "RANK" not in os.environ:
            main()
            return
        store = _store()
        threading.Thread(target=_end_with_others, args=(store, os.getppid()), daemon=True).start()
        try:
            main()
        except UserError:
            if not _is_first_to_fail(store):
                raise SystemExit(2) from None
            raise
        except Exception:
            _is_first_to_fail(store)
            raise

    return wrapped


def _end_with_others(store: TCPStore | None, torchrun: int) -> None:
    """End this rank some seconds after another one has failed, or its ``torchrun`` is gone."""
    while os.getppid() == torchrun and not _has_failed(store):
        time.sleep(1)
    time.sleep(SECONDS_TO_END)
    os._exit(2)


def _is_first_to_fail(store: TCPStore | None) -> bool:
    """Whether no other rank has asked this.

    Without an answer from the store the error is told rather than lost.
    """
    try:
        return store is None or store.add(_key(), 1) == 1
    except RuntimeError:
        return True


def _has_failed(store: TCPStore | None) -> bool:
    """Whether a rank has; one whose machine took the store with it counts."""
    try:
        return store is not None and store.check([_key()])
    except RuntimeError:
        return True


def _key() -> str:
    return f"nvlm/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _store() -> TCPStore | None:
    """A connection to torchrun's store, at the first machine; None if it can't be reached."""
    from torch._C._distributed_c10d import TCPStore

    try:
        return TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=10),
        )
    except (KeyError, RuntimeError):
        return None
