"""What the chosen scale needs against what this machine has."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from packaging.version import Version

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class EnvironmentParams:
    """Least versions and sizes that the stages of a scale need."""

    scale: str
    python: str
    packages: dict[str, str]
    cores: int
    memory_gib: float
    disk_gib: float  # free, where the project is
    accelerators: int  # GPUs of this node
    accelerator_memory_gib: float  # of each


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One line of the comparison."""

    what: str
    needed: str
    here: str
    met: bool

    @property
    def sentence(self) -> str:
        """What is needed, and what is here."""
        return f"{self.what} {self.needed} (here {self.here})"


def requirements(params: EnvironmentParams, *, elsewhere: bool) -> Iterator[Requirement]:
    """Compare what ``params`` ask for with this machine.

    ``elsewhere``: where ranks run in jobs on other machines, this one needs no GPUs, and what the
    others have is asked when a job starts there.
    """
    python = ".".join(map(str, sys.version_info[:3]))
    yield _at_least_version("python", params.python, python)
    for package, needed in params.packages.items():
        try:
            yield _at_least_version(package, needed, version(package))
        except PackageNotFoundError:
            yield Requirement(what=package, needed=needed, here="not installed", met=False)
    yield _at_least("free disk (GiB)", params.disk_gib, shutil.disk_usage(Path.cwd()).free / GIB)
    if not elsewhere:
        yield from of_machine(params)


def of_machine(params: EnvironmentParams) -> Iterator[Requirement]:
    """Cores, memory and GPUs."""
    yield _at_least("CPU cores", params.cores, os.cpu_count() or 1)
    yield _at_least("memory (GiB)", params.memory_gib, psutil.virtual_memory().total / GIB)
    if params.accelerators:
        import torch  # takes seconds to import, and only a GPU needs it

        here = torch.cuda.device_count()
        yield _at_least("GPUs", params.accelerators, here)
        memory = [torch.cuda.get_device_properties(gpu).total_memory for gpu in range(here)]
        smallest = min(memory, default=0) / GIB
        yield _at_least("memory a GPU (GiB)", params.accelerator_memory_gib, smallest)


def _at_least(what: str, needed: float, here: float) -> Requirement:
    return Requirement(what=what, needed=f"{needed:g}", here=f"{here:.4g}", met=here >= needed)


def _at_least_version(what: str, needed: str, here: str) -> Requirement:
    return Requirement(what=what, needed=needed, here=here, met=Version(here) >= Version(needed))
