"""What a run scores on the way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OnlineParams:
    """A few questions of some tasks, answered every few steps. No output depends on them."""

    every: int  # steps between two evaluations
    tasks: list[str]  # of eval.tasks
    questions: int  # of each task: those whose ids have the smallest digests
    batch_size: int  # questions at once, of each replica

    def __post_init__(self) -> None:
        for name in ("every", "questions", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1, not {getattr(self, name)}")
        if not self.tasks:
            raise ValueError("tasks: should name at least one task, or online should be null")
