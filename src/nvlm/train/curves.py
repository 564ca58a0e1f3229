"""Training curves: what is determined by the inputs is an output, what a clock decides is a log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nvlm.atomic import write_text


class Curves:
    """Collects points, and writes them as CSV that ``dvc plots`` draws."""

    def __init__(self, plot: Path, log: Path) -> None:
        """``plot`` is an output, the same bytes at every run; ``log`` is ignored by git."""
        self.plot, self.log = plot, log
        self.points: list[dict[str, float]] = []
        self.timings: list[dict[str, float]] = []

    def add(self, step: int, **values: float) -> None:
        """Record values of ``step`` that the inputs determine, such as the loss."""
        self.points.append({"step": step, **values})

    def add_timing(self, step: int, **values: float) -> None:
        """Record values of ``step`` that depend on the machine and the moment."""
        self.timings.append({"step": step, **values})

    def write(self) -> None:
        """Write both files, with six significant digits."""
        write_text(self.plot, _csv(self.points))
        write_text(self.log, _csv(self.timings))


def _csv(rows: list[dict[str, float]]) -> str:
    lines = [",".join(rows[0]), *(_line(row) for row in rows)]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, float]) -> str:
    return ",".join(f"{value:.6g}" for value in row.values())
