"""Task 10: score the answers of one task; draw a gallery and a confusion of them.

Run with: python src/score.py --task TextVQA --generated data/generated/72b/sft/TextVQA.jsonl \
    --data data/eval/TextVQA --metrics metrics/72b/sft/TextVQA.json \
    --details reports/scores/72b/sft/TextVQA.json --gallery plots/72b/sft/TextVQA.png \
    --confusion plots/72b/confusion/sft/TextVQA.csv

The metrics are one number, which dvc metrics diff shows; intervals, categories and the scores by
other rules are the details.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path

from nvlm.atomic import write_text
from nvlm.errors import run_command
from nvlm.evaluate.answering.answers import read_answers
from nvlm.evaluate.ground_truth.readers import read_questions
from nvlm.evaluate.params import TaskParams
from nvlm.evaluate.reporting.confusion import confusion_table
from nvlm.evaluate.reporting.gallery import write_gallery
from nvlm.evaluate.reporting.scoring import metric_called, report
from nvlm.params import load_params


def main() -> None:
    """Read the arguments, score, write metrics and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--task", required=True, help="a task of eval.tasks in params.yaml")
    parser.add_argument("--generated", type=Path, required=True, help="answers (JSON lines)")
    parser.add_argument("--blank", type=Path, help="answers to blank images, a baseline")
    parser.add_argument("--data", type=Path, required=True, help="directory of the ground truth")
    parser.add_argument("--metrics", type=Path, required=True, help="score to write (JSON)")
    parser.add_argument("--details", type=Path, required=True, help="report to write (JSON)")
    parser.add_argument("--gallery", type=Path, required=True, help="picture to write (PNG)")
    parser.add_argument("--confusion", type=Path, help="pairs of truth and answer to write (CSV)")
    arguments = parser.parse_args()

    # Millions of small objects without cycles: looking for some takes a quarter of the time.
    gc.disable()
    params = load_params(f"eval.tasks.{arguments.task}", TaskParams)
    metric = metric_called(params.metric)
    questions = read_questions(arguments.data, params.ground_truth)
    answers = read_answers(arguments.generated, questions)
    texts = [answer.text for answer in answers]
    blank = None
    if arguments.blank:
        blank = [answer.text for answer in read_answers(arguments.blank, questions)]
    verdicts = metric.score(questions, texts)
    details = report(params.metric, questions, texts, verdicts, blank)
    write_gallery(arguments.gallery, questions, answers, verdicts)
    if arguments.confusion:
        write_text(arguments.confusion, confusion_table(questions, verdicts))
    write_text(arguments.details, f"{json.dumps(details, indent=2, ensure_ascii=False)}\n")
    write_text(arguments.metrics, f"{json.dumps({'score': details['score']}, indent=2)}\n")


if __name__ == "__main__":
    run_command(main)
