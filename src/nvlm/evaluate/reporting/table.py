"""The scores in reports/scores/ as a table: one line a branch and task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvlm.errors import UserError
from nvlm.evaluate.ground_truth.files import read_json

FINAL, BEFORE, RELEASED = "sft", "pretrained", "released"  # directories of a branch
HEADINGS = ("branch", "task", "majority", BEFORE, FINAL, "samples", "unparsable")


def score_table(scores: Path) -> str:
    """``majority`` is the best constant answer; a model that was not scored shows as "-".

    Raises UserError if nothing was scored.
    """
    scored = {
        (path.parent.parent.name, path.stem): path
        for path in sorted(scores.glob(f"*/{FINAL}/*.json"))
    }
    if not scored:
        raise UserError(f"{scores} holds no scores: run dvc repro")
    rows: list[tuple[str, ...]] = [HEADINGS]
    for (branch, task), path in scored.items():
        final = read_json(path)
        before_path = scores / branch / BEFORE / path.name
        before = read_json(before_path) if before_path.is_file() else {}
        shown = (final["majority"], before.get("score"), final["score"])
        counts = (final["samples"], final["unparsable"])
        rows.append((branch, task, *map(_score, shown), *map(str, counts)))
    return aligned(rows, left=2)


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """``rows`` as lines of equally wide columns, the first ``left`` of which begin at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _score(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"
