"""Task 3: one evaluation set, in the format of its official ground truth.

Run with: python src/prepare_eval.py --params data.eval.VQAv2 --task VQAv2 --out data/eval/VQAv2

An official set is read once as generation will read it, so that what is missing shows here rather
than after days of training.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from nvlm.data.benchmarks.evaluation import EvaluationParams, prepare_evaluation
from nvlm.errors import run_command
from nvlm.evaluate.ground_truth.readers import read_questions
from nvlm.evaluate.params import GroundTruthParams
from nvlm.params import load_params


def main() -> None:
    """Read the arguments and prepare the evaluation set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--params", required=True, help="section of params.yaml: data.eval.TASK")
    parser.add_argument("--task", required=True, help="a task of eval.tasks in params.yaml")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    arguments = parser.parse_args()

    ground_truth = load_params(f"eval.tasks.{arguments.task}.ground_truth", GroundTruthParams)

    def images_of(directory: Path) -> Iterator[Path]:
        for question in read_questions(directory, ground_truth):
            yield from question.images

    prepare_evaluation(
        arguments.task, load_params(arguments.params, EvaluationParams), arguments.out, images_of
    )


if __name__ == "__main__":
    run_command(main)
