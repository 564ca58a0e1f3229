"""Task 3: one evaluation set, in the format of its official ground truth.

Run with: python src/prepare_eval.py --params data.eval.VQAv2 --task VQAv2 --out data/eval/VQAv2
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.data.evaluation import EvaluationParams, prepare_evaluation
from nvlm.errors import run_command
from nvlm.params import load_params


def main() -> None:
    """Read the arguments and prepare the evaluation set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--params", required=True, help="section of params.yaml: data.eval.TASK")
    parser.add_argument("--task", required=True, help="captioning, TextVQA, VQAv2 or MMMU")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    arguments = parser.parse_args()
    prepare_evaluation(
        arguments.task, load_params(arguments.params, EvaluationParams), arguments.out
    )


if __name__ == "__main__":
    run_command(main)
