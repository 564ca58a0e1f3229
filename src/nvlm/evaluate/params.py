"""What conf/eval/ says of a task: whose file, which rule, and how the model is asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AskParams:
    """The prompt. Only generation depends on it."""

    system: str  # the system turn; "" for none
    prompt: str  # holds {question}; {options} stands for one line an option
    max_new_tokens: int
    option: str = ""  # one line of {options}; holds {letter} and {text}
    open_prompt: str = ""  # of questions without options, in a task that has both

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: at least 1, not {self.max_new_tokens}")
        if "{options}" in self.prompt and not (
            "{letter}" in self.option or "{text}" in self.option
        ):
            raise ValueError(f"option: should hold {{letter}} and {{text}}, not {self.option!r}")


@dataclass(frozen=True, kw_only=True)
class TaskParams:
    """A benchmark."""

    ground_truth: str  # format of its file: a name in ground_truth/formats.py
    metric: str  # the rule: a name in scoring.py
    ask: AskParams


@dataclass(frozen=True, kw_only=True)
class GenerateParams:
    """How answers are generated, whatever the task. The grid is the checkpoint's."""

    batch_size: int  # questions at once
    max_tiles: int  # of an image, without the thumbnail
    thumbnail: bool
    tile_tags: bool
    dtype: str  # of weights and activations: float32 or bfloat16

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: at least 1, not {self.batch_size}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype: float32 or bfloat16, not {self.dtype!r}")
