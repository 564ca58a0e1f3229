"""Errors a user can cause, told in one sentence instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user can put right: one clear sentence that names the thing and the remedy."""


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run ``main`` as a program: a ``UserError`` becomes one line on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
