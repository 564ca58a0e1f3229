"""Whether those who started this stage are still there.

dvc runs a stage through a shell. SIGTERM to dvc alone ends dvc, and leaves shell and stage. Who
started dvc may go: ``nohup dvc repro &`` outlives the terminal.
"""

from __future__ import annotations

from pathlib import Path

import psutil

SHELLS = ("sh", "dash", "bash", "zsh", "ksh", "fish")


class Ancestors:
    """Who started this process: its parent and, where that is a shell for one command, the shell's.

    Some shells start a command and wait for it, others become it: then there is the parent alone.
    """

    def __init__(self) -> None:
        parents = psutil.Process().parents()
        between = bool(parents) and _runs_one_command(parents[0])
        self._processes = parents[: 2 if between else 1]

    def gone(self) -> bool:
        """Whether one of them has ended since."""
        return not all(_is_alive(process) for process in self._processes)


def _runs_one_command(process: psutil.Process) -> bool:
    """Whether ``process`` is a shell that runs what stands on its command line (sh -c COMMAND)."""
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    return len(line) > 2 and Path(line[0]).name in SHELLS and line[-2] == "-c"


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
