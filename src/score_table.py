"""Print the scores of all tasks as one table.

Run with: python src/score_table.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.errors import run_command
from nvlm.evaluate.reporting.freshness import LOCK
from nvlm.evaluate.reporting.table import score_table


def main() -> None:
    """Read the scores and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--scores", type=Path, default=Path("reports/scores"), help="of BRANCH/MODEL/TASK.json"
    )
    print(score_table(parser.parse_args().scores, LOCK))


if __name__ == "__main__":
    run_command(main)
