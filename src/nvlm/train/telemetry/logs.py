"""Logs of a run: what a clock decides, and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm.atomic import write_text
from nvlm.errors import UserError
from nvlm.train.curves import points_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Logs:
    """Collects points, and writes them beside each other in a directory that git and DVC ignore.

    NAME_speed.csv and NAME_curves.csv (at each snapshot), NAME_online.csv, and NAME_tensorboard/
    where it is asked for.
    """

    def __init__(self, directory: Path, name: str, *, tensorboard: bool) -> None:
        """Raises UserError if TensorBoard is asked for and not installed."""
        self.path = directory / name
        self.timings: list[dict[str, float]] = []
        self.scores: list[dict[str, float]] = []
        self.writer = _tensorboard(self._file("tensorboard")) if tensorboard else None

    def show(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Show ``values`` in TensorBoard."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, step)

    def add_timing(self, step: int, **values: float) -> None:
        """Record values of ``step`` that depend on the machine and the moment."""
        self.timings.append({"step": step, **values})
        self.show(step, "speed", values)

    def add_scores(self, step: int, **values: float) -> None:
        """Record the scores of an online evaluation after ``step``; their file is written now."""
        self.scores.append({"step": step, **values})
        self.show(step, "online", values)
        write_text(self._file("online.csv"), points_text(self.scores))

    def state(self) -> tuple[list[dict[str, float]], ...]:
        """All that was recorded, for ``restore``."""
        return list(self.timings), list(self.scores)

    def restore(self, state: tuple[list[dict[str, float]], ...]) -> None:
        """Go on from ``state``."""
        self.timings, self.scores = (list(rows) for rows in state)

    def write(self, curves: Sequence[Mapping[str, float]]) -> None:
        """Write the timings, and the ``curves`` so far: a running or dead run can be looked at."""
        for name, points in (("speed.csv", self.timings), ("curves.csv", curves)):
            if points:
                write_text(self._file(name), points_text(points))
        if self.writer is not None:
            self.writer.flush()

    def _file(self, what: str) -> Path:
        return self.path.with_name(f"{self.path.name}_{what}")


def _tensorboard(directory: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "tensorboard = true needs the package of that name: pip install tensorboard, or set it "
            "to false in conf/train"
        ) from None
    return SummaryWriter(str(directory))
