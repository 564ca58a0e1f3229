"""Training curves: what is determined by the inputs is an output, what a clock decides is a log."""

from __future__ import annotations

from pathlib import Path

from nvlm.atomic import write_text


class Curves:
    """Collects points, and writes them as CSV that ``dvc plots`` draws."""

    def __init__(self, plot: Path, log: Path) -> None:
        self.plot, self.log = plot, log
        self.points: list[str] = ["step,loss,lr,grad_norm"]
        self.speeds: list[str] = ["step,seconds,tokens_per_second"]

    def add(self, step: int, *, loss: float, lr: float, grad_norm: float) -> None:
        """Record one step: mean loss of an answer token (nats), learning rate, gradient norm."""
        self.points.append(f"{step},{loss:.6g},{lr:.6g},{grad_norm:.6g}")

    def add_speed(self, step: int, seconds: float, tokens: int) -> None:
        """Record how long a step took, and the speed at which it went through ``tokens``."""
        self.speeds.append(f"{step},{seconds:.3f},{tokens / seconds:.0f}")

    def write(self) -> None:
        """Write both files: ``plot`` is an output, ``log`` is ignored by git."""
        write_text(self.plot, "\n".join(self.points) + "\n")
        write_text(self.log, "\n".join(self.speeds) + "\n")
