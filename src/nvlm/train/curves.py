"""Training curves: what is determined by the inputs is an output, what a clock decides is a log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm.atomic import write_text
from nvlm.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Curves:
    """Collects points, and writes them as CSV that ``dvc plots`` draws.

    ``plot`` is an output, the same bytes at every run. The other files lie in ``logs``, which git
    and DVC ignore: NAME_speed.csv, NAME_online.csv, and NAME_tensorboard/ where that is asked for.
    """

    def __init__(self, plot: Path, logs: Path, *, tensorboard: bool) -> None:
        """Raises UserError if TensorBoard is asked for and not installed."""
        self.plot, self.logs = plot, logs
        self.points: list[dict[str, float]] = []
        self.timings: list[dict[str, float]] = []
        self.scores: list[dict[str, float]] = []
        self.writer = _tensorboard(self._log("tensorboard")) if tensorboard else None

    def add(self, step: int, **values: float) -> None:
        """Record values of ``step`` that the inputs determine, such as the loss."""
        self.points.append({"step": step, **values})
        self._show(step, "training", values)

    def add_timing(self, step: int, **values: float) -> None:
        """Record values of ``step`` that depend on the machine and the moment."""
        self.timings.append({"step": step, **values})
        self._show(step, "speed", values)

    def add_scores(self, step: int, **values: float) -> None:
        """Record the scores of an online evaluation after ``step``; their file is written now."""
        self.scores.append({"step": step, **values})
        self._show(step, "online", values)
        write_text(self._log("online.csv"), _csv(self.scores))

    def state(self) -> tuple[list[dict[str, float]], ...]:
        """All that was recorded, for ``restore``."""
        return list(self.points), list(self.timings), list(self.scores)

    def restore(self, state: tuple[list[dict[str, float]], ...]) -> None:
        """Go on from ``state``."""
        self.points, self.timings, self.scores = (list(rows) for rows in state)

    def write(self) -> None:
        """Write the curves, with six significant digits."""
        write_text(self.plot, _csv(self.points))
        write_text(self._log("speed.csv"), _csv(self.timings))
        if self.writer is not None:
            self.writer.close()

    def _log(self, what: str) -> Path:
        return self.logs / f"{self.plot.stem}_{what}"

    def _show(self, step: int, group: str, values: Mapping[str, float]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, step)


def _tensorboard(directory: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "tensorboard = true needs the package of that name: pip install tensorboard, or set it "
            "to false in conf/train"
        ) from None
    return SummaryWriter(str(directory))


def _csv(rows: list[dict[str, float]]) -> str:
    lines = [",".join(rows[0]), *(_line(row) for row in rows)]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, float]) -> str:
    return ",".join(f"{value:.6g}" for value in row.values())
