"""The section ``eval.text``: which text benchmarks are run, of which models."""

from __future__ import annotations

from dataclasses import dataclass, field

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class TextTaskParams:
    """A task of the harness, by its name there."""

    shots: int  # worked examples in the prompt
    metric: str  # METRIC,FILTER: which of the harness's numbers is the score
    executes: bool = False  # scored by running the programs that the model writes

    def __post_init__(self) -> None:
        if self.shots < 0:
            raise ValueError(f"shots: 0 or more, not {self.shots}")
        if self.metric.count(",") != 1:
            raise ValueError(f"metric: METRIC,FILTER such as acc,none, not {self.metric!r}")


@dataclass(frozen=True, kw_only=True)
class TextParams:
    """What the stages ``text_BRANCH@MODEL`` run."""

    # By branch and name: directories in Hugging Face's layout, an NVLM_D or a decoder alone.
    models: dict[str, dict[str, str]]
    tasks: dict[str, TextTaskParams]
    chat: bool  # prompts as conversations, by the model's own template
    dtype: str
    max_new_tokens: int  # of an answer that is generated
    limit: int | None  # questions of a task (of each part of one); null for all
    allow_execution: bool  # whether tasks that execute programs are run, and not left out
    batch_size: int
    environment: str  # of the harness: make text-setup makes it
    # Points by task, branch and model.
    published: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: at least 1, or null for all, not {self.limit}")
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1, not {getattr(self, name)}")
        if unknown := self.published.keys() - self.tasks.keys():
            known = ", ".join(self.tasks)
            raise ValueError(f"published: {min(unknown)} is no task of {known}")

    def run(self) -> dict[str, TextTaskParams]:
        """The tasks that are run: without those that execute programs, unless that is allowed."""
        return {
            name: task
            for name, task in self.tasks.items()
            if self.allow_execution or not task.executes
        }
