"""Write our scores beside the published, each with its model, prompt and parser.

Run with: python src/report.py --scale smoke --scores reports/scores --checkpoints checkpoints \
    --out reports/results.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.atomic import write_text
from nvlm.errors import run_command
from nvlm.evaluate.params import EvaluationParams
from nvlm.evaluate.reporting.results import results_page
from nvlm.params import load_params


def main() -> None:
    """Read the arguments and the scores, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scores", type=Path, required=True, help="BRANCH/MODEL/TASK.json")
    parser.add_argument("--checkpoints", type=Path, required=True, help="BRANCH/MODEL")
    parser.add_argument("--scale", required=True, help="of these models and sets: smoke or full")
    parser.add_argument("--out", type=Path, required=True, help="page to write (Markdown)")
    arguments = parser.parse_args()

    params = load_params("eval", EvaluationParams)
    page = results_page(arguments.scores, arguments.checkpoints, params, arguments.scale)
    write_text(arguments.out, page)


if __name__ == "__main__":
    run_command(main)
