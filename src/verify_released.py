"""The answers of the released model against those of the model that it should be.

Run with: python src/verify_released.py --answers data/generated/72b/released \
    --expected data/generated/72b/sft --metrics metrics/72b/released_answers.json

The graph fails here if exporting, downloading and importing have changed one answer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nvlm.atomic import write_text
from nvlm.errors import run_command
from nvlm.evaluate.answering.equality import check_equal_answers


def main() -> None:
    """Read the arguments, compare, and write how many answers are equal: all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--answers", type=Path, required=True, help="directory of TASK.jsonl")
    parser.add_argument("--expected", type=Path, required=True, help="directory of TASK.jsonl")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    equal = check_equal_answers(arguments.answers, arguments.expected)
    write_text(arguments.metrics, f"{json.dumps({'equal': equal, 'different': 0}, indent=2)}\n")


if __name__ == "__main__":
    run_command(main)
