"""Training curves: what the inputs determine, as an output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nvlm.atomic import write_text


class Curves:
    """Collects points, and writes them as CSV that ``dvc plots`` draws, the same at every run."""

    def __init__(self, plot: Path) -> None:
        self.plot = plot
        self.points: list[dict[str, float]] = []

    def add(self, step: int, **values: float) -> None:
        """Record values of ``step``, such as the loss."""
        self.points.append({"step": step, **values})

    def write(self) -> None:
        """Write the curves."""
        write_text(self.plot, points_text(self.points))


def points_text(points: Sequence[Mapping[str, float]]) -> str:
    """``points`` as CSV with six significant digits; the first of them names the columns."""
    lines = [",".join(points[0])]
    lines += [",".join(f"{value:.6g}" for value in point.values()) for point in points]
    return "\n".join(lines) + "\n"
