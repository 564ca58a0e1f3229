"""The page beside the plots of a blend: what each dataset gives, and what a row takes from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm.data.loading.blend import Blend
from nvlm.data.loading.inspection import Statistics
from nvlm.data.loading.params import LoaderParams
from nvlm.model.prompts import CHOOSE, READ_ANSWER, SHORT_ANSWER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INSTRUCTIONS = tuple(text.strip() for text in (SHORT_ANSWER, READ_ANSWER, CHOOSE))
HEADS = ("dataset", "weight", "share", "read", "lost tiles", "too long", "unreadable", "longest")


def report_text(
    title: str,
    statistics: Statistics,
    params: LoaderParams,
    blend: Blend,
    tokenizer: PreTrainedTokenizerFast,
) -> str:
    """The page (Markdown) on ``statistics`` of ``blend``: the same bytes for the same stream."""
    tally = statistics.tally
    told = tally.sentence(params.sequence_length)
    lines = [
        f"# What {title} reads",
        "",
        f"The first {len(statistics.padding):,} rows of {params.sequence_length:,} tokens hold "
        f"{tally.kept.total():,} samples: " + (f"{told}." if told else "every one whole."),
        *([f"\n**{blend.told()}**."] if blend.missing else []),
        "",
        "| " + " | ".join(HEADS) + " |",
        "|" + "---|" * len(HEADS),
        *_datasets(statistics, blend),
        "",
        "Share: of the weight of what is there. Read: left out or not. Longest: tokens "
        "that the longest of those that fell short has with all its tiles.",
        *_prompts(statistics, blend, tokenizer),
    ]
    return "\n".join(lines) + "\n"


def _datasets(statistics: Statistics, blend: Blend) -> Iterator[str]:
    tally, whole = statistics.tally, sum(blend.weights.values())
    for name, weight in blend.weights.items():
        longest = tally.longest[name]
        cells = [name, f"{weight:g}", f"{weight / whole:.1%}", f"{tally.read(name):,}"]
        cells += [f"{tally.count(kind, name):,}" for kind in ("fewer tiles", "too long")]
        cells += [f"{tally.count('unreadable', name):,}", f"{longest:,}" if longest else ""]
        yield "| " + " | ".join(cells) + " |"


def _prompts(
    statistics: Statistics, blend: Blend, tokenizer: PreTrainedTokenizerFast
) -> Iterator[str]:
    """One prompt of each dataset as it is trained on, and whose questions lack an instruction."""
    yield from ("", "## A prompt of each dataset", "")
    for name, ids in sorted(statistics.prompts.items()):
        text = str(tokenizer.decode(ids))
        on_a_line = text.replace("\n", "\\n").replace("`", "'")
        yield f"- {name}: `{on_a_line}`"
        if _has_questions(blend.root / name) and not any(said in text for said in INSTRUCTIONS):
            yield (
                f"  **Asked without a word on how to answer**, where the tasks of eval.tasks say "
                f'one, such as "{INSTRUCTIONS[0]}": a model learns to answer the one form and is '
                "asked in the other. If answers are short, give the dataset task: short_answer in "
                "conf/data."
            )


def _has_questions(dataset: Path) -> bool:
    """Whether it is of Energon's VQASample, which its definition names."""
    definition = dataset / ".nv-meta" / "dataset.yaml"
    return "__class__: VQASample" in definition.read_text(encoding="utf-8")
