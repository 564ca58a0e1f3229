"""Write our scores beside the published, each with its model, prompt and parser.

Run with: python src/report.py --scale smoke --scores reports/scores --checkpoints checkpoints \
    --data data --out reports/results.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.atomic import write_text
from nvlm.data.loading.blend import find_blend
from nvlm.data.loading.params import LoaderParams
from nvlm.errors import run_command
from nvlm.evaluate.params import EvaluationParams
from nvlm.evaluate.reporting.results import results_page
from nvlm.params import load_params, section_keys


def main() -> None:
    """Read the arguments and the scores, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scores", type=Path, required=True, help="BRANCH/MODEL/TASK.json")
    parser.add_argument("--checkpoints", type=Path, required=True, help="BRANCH/MODEL")
    parser.add_argument("--data", type=Path, required=True, help="pretrain/NAME, sft/NAME")
    parser.add_argument("--scale", required=True, help="of these models and sets")
    parser.add_argument("--out", type=Path, required=True, help="page to write (Markdown)")
    arguments = parser.parse_args()

    params = load_params("eval", EvaluationParams)
    page = results_page(
        arguments.scores, arguments.checkpoints, params, arguments.scale, missing(arguments.data)
    )
    write_text(arguments.out, page)


def missing(data: Path) -> dict[str, str]:
    """What each training stage did without, by its name; of those alone whose blend lacks any."""
    told = {}
    for stage in section_keys("train"):
        weights = load_params(f"train.{stage}.data", LoaderParams).blend
        if sentence := find_blend(data / stage.partition("_")[0], weights).told():
            told[stage] = sentence
    return told


if __name__ == "__main__":
    run_command(main)
