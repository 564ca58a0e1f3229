"""What conf/eval/ says of a task: whose file, which rule, and how the model is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

IMAGES = ("first", "all")
# Names are checked before anything runs, and what they stand for takes long to import: the
# registries are ground_truth/readers.py and reporting/scoring.py.
RECORDS = "records"  # the reader of lists of records, ground_truth/records.py
READERS = (RECORDS, "coco", "folder", "karpathy", "mathvista", "mmmu", "textvqa", "vqav2")
UNSCORED = "folder"  # the one reader whose questions have no answer, and need no metric
METRICS = ("anls", "cider", "exact", "mathvista", "mmmu", "ocrbench", "relaxed", "vqa")
FIELDS = ("question", "image", "answers")  # of records, each of which must be named
OPTIONAL_FIELDS = ("id", "category", "choices", "correct", "dataset")
PLACES = {
    "prompt": ("question", "options"),
    "open_prompt": ("question",),
    "option": ("letter", "text"),
}
# A word in braces; LaTeX's \boxed{answer} is none.
_PLACE = re.compile(r"(?<!\w)\{(\w+)\}")


@dataclass(frozen=True, kw_only=True)
class GroundTruthParams:
    """Where the questions and their answers come from."""

    reader: str  # a name in ground_truth/readers.py
    # What the publisher calls each field; for the reader "records" (ground_truth/records.py).
    fields: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reader not in READERS:
            raise ValueError(f"reader: one of {', '.join(READERS)}, not {self.reader!r}")
        if self.reader != RECORDS:
            if self.fields:
                raise ValueError(f"fields: for the reader {RECORDS} alone, not {self.reader}")
            return
        if missing := [name for name in FIELDS if name not in self.fields]:
            raise ValueError(f"fields: {', '.join(missing)} must be named")
        if unknown := self.fields.keys() - {*FIELDS, *OPTIONAL_FIELDS}:
            known = ", ".join((*FIELDS, *OPTIONAL_FIELDS))
            raise ValueError(f"fields: {', '.join(sorted(unknown))} is none of {known}")


@dataclass(frozen=True, kw_only=True)
class AskParams:
    """The prompt. Only generation depends on it."""

    system: str  # the system turn; "" for none
    prompt: str  # holds {question}; {options} stands for one line an option
    max_new_tokens: int
    option: str = ""  # one line of {options}; holds {letter} and {text}
    open_prompt: str = ""  # of questions without options, in a task that has both
    # first: one image, <image 1> is taken out of the text; all: each image where the text names it
    images: str = "first"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: at least 1, not {self.max_new_tokens}")
        for name, places in PLACES.items():
            if unknown := set(_PLACE.findall(getattr(self, name))) - set(places):
                known = " and ".join(f"{{{place}}}" for place in places)
                raise ValueError(
                    f"{name}: {{{min(unknown)}}} stands for nothing and would be asked as it is; "
                    f"{known} are filled in"
                )
        if "{options}" in self.prompt and not (
            "{letter}" in self.option or "{text}" in self.option
        ):
            raise ValueError(f"option: should hold {{letter}} and {{text}}, not {self.option!r}")
        if self.images not in IMAGES:
            raise ValueError(f"images: one of {', '.join(IMAGES)}, not {self.images!r}")


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """What one source says of NVLM-D on one split of a benchmark."""

    source: str  # a name of eval.sources
    split: str
    scores: dict[str, float]  # points by branch: 34b, 72b
    setting: str = ""  # of the pictures or the prompt, where there are several

    def __post_init__(self) -> None:
        if not self.scores:
            raise ValueError(f"scores: points by branch, such as 72b, from {self.source}")


@dataclass(frozen=True, kw_only=True)
class PublishedParams:
    """The published scores of NVLM-D on this benchmark, and how ours are held against them."""

    split: str  # whose rows ours are held against
    rows: list[PublishedRow]
    own_split: str = ""  # that ours are of, where the answers of ``split`` are not public
    ours: str = "score"  # which of our scores goes by the same rule
    scale: int = 100  # points for a score of 1

    def __post_init__(self) -> None:
        splits = {row.split: None for row in self.rows}
        if self.rows and self.split not in splits:
            raise ValueError(f"split: one of the rows' ({', '.join(splits)}), not {self.split!r}")


@dataclass(frozen=True, kw_only=True)
class PublishedSource:
    """Where scores are published."""

    title: str
    address: str


@dataclass(frozen=True, kw_only=True)
class TaskParams:
    """A benchmark."""

    ground_truth: GroundTruthParams
    metric: str  # the rule: a name in scoring.py; "" where nothing is scored
    ask: AskParams
    published: PublishedParams | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS and (self.metric or self.ground_truth.reader != UNSCORED):
            raise ValueError(f"metric: one of {', '.join(METRICS)}, not {self.metric!r}")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn; without this the most likely one is taken."""

    temperature: float  # above 0
    top_p: float  # of the probability mass, 1 for all of it
    seed: int  # with the question's id: an answer doesn't depend on which others are asked

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature: above 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: above 0 and at most 1, not {self.top_p}")


@dataclass(frozen=True, kw_only=True)
class GenerateParams:
    """What the answers depend on, whatever the task. The grid is the checkpoint's."""

    max_tiles: int  # of a prompt's images together, without the thumbnails
    thumbnail: bool
    tile_tags: bool
    dtype: str  # of weights and activations: float32 or bfloat16
    sampling: SamplingParams | None = None  # null: greedy

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype: float32 or bfloat16, not {self.dtype!r}")


@dataclass(frozen=True, kw_only=True)
class RunParams:
    """How fast the answers come; no stage of the graph depends on these."""

    batch_size: int  # questions at once
    tile_chunk: int  # tiles that the vision tower of a rank encodes at once
    concurrency: int  # requests at once, to a server
    retries: int  # of a request that failed
    timeout: float  # seconds for one request
    # Who has opened a checkpoint for one task goes on to the others that lack its answers.
    answer_ahead: bool

    def __post_init__(self) -> None:
        for name in ("batch_size", "tile_chunk", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1, not {getattr(self, name)}")
        if self.retries < 0:
            raise ValueError(f"retries: at least 0, not {self.retries}")
        if self.timeout <= 0:
            raise ValueError(f"timeout: above 0, not {self.timeout}")


@dataclass(frozen=True, kw_only=True)
class EvaluationParams:
    """The whole section ``eval``."""

    generate: GenerateParams
    run: RunParams
    tasks: dict[str, TaskParams]
    # By the names that published rows give.
    sources: dict[str, PublishedSource] = field(default_factory=dict)
    text: Any = None  # read by the stages text_BRANCH, as text/params.py has it

    def __post_init__(self) -> None:
        for name, task in self.tasks.items():
            for row in task.published.rows if task.published else ():
                if row.source not in self.sources:
                    known = ", ".join(self.sources) or "none (eval.sources)"
                    raise ValueError(
                        f"tasks.{name}.published: source: one of {known}, not {row.source!r}"
                    )
