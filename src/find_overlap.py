"""Task 3: which training samples show a picture that the model will be evaluated on.

Run with: python src/find_overlap.py --data data --metrics metrics/data/overlap.json \\
              --left-out data/left_out.json --report reports/data/overlap.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nvlm.atomic import write_text
from nvlm.data.overlap import Overlap, OverlapParams, find_overlap, overlap_workers, read_evaluation
from nvlm.errors import run_command
from nvlm.params import load_params

GROUPS = ("pretrain", "sft")


def main() -> None:
    """Compare every prepared training set with all evaluation sets, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="holds pretrain, sft and eval")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON of counts to write")
    parser.add_argument("--left-out", type=Path, required=True, help="JSON of samples to write")
    parser.add_argument("--report", type=Path, required=True, help="Markdown to write")
    arguments = parser.parse_args()
    params = load_params("data.overlap", OverlapParams)
    with overlap_workers() as pool:
        evaluation = read_evaluation(arguments.data / "eval", pool)
        found = {
            f"{group}/{directory.name}": find_overlap(directory, evaluation, params.distance, pool)
            for group in GROUPS
            for directory in sorted((arguments.data / group).iterdir())
            if directory.is_dir()
        }
    counts = {
        name.replace("/", "_"): {
            "same_file": overlap.same_file.total(),
            "alike": overlap.alike.total(),
        }
        for name, overlap in found.items()
    }
    left_out = {
        name: overlap.samples
        for name, overlap in found.items()
        if params.leave_out and overlap.samples
    }
    write_text(arguments.metrics, json.dumps(counts, indent=2) + "\n")
    write_text(arguments.left_out, json.dumps(left_out, indent=0) + "\n")
    write_text(arguments.report, _report(found, params))


def _report(found: dict[str, Overlap], params: OverlapParams) -> str:
    """A table of training sets by evaluation sets."""
    done = "are left out" if params.leave_out else "are trained on (data.overlap.leave_out: false)"
    lines = [
        "# Evaluation pictures among training pictures",
        "",
        "Pictures of a training set that an evaluation set has too: the same file, or one whose",
        f"fingerprint differs in at most {params.distance} of 256 bits. Their samples {done}.",
        "",
        "| training set | pictures | evaluation set | same file | alike |",
        "|---|---:|---|---:|---:|",
    ]
    for name, overlap in found.items():
        tasks = sorted(overlap.same_file.keys() | overlap.alike.keys()) or ["none"]
        lines += [
            f"| {name} | {overlap.pictures} | {task} | {overlap.same_file[task]} | "
            f"{overlap.alike[task]} |"
            for task in tasks
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main)
