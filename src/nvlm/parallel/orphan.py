"""Whether those who started this stage are still there.

dvc runs a stage through a shell. SIGTERM to dvc alone ends dvc, and leaves shell and stage.
"""

from __future__ import annotations

import psutil


class Ancestors:
    """The shell that started this process and that shell's parent, as they are now."""

    def __init__(self) -> None:
        self._processes = psutil.Process().parents()[:2]

    def gone(self) -> bool:
        """Whether one of them has ended since."""
        return not all(_is_alive(process) for process in self._processes)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
