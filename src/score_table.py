"""Print the scores of all tasks as one table.

Run with: python src/score_table.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.errors import run_command
from nvlm.evaluate.reporting.table import score_table


def main() -> None:
    """Read the metrics and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--metrics", type=Path, default=Path("metrics"), help="directory of BRANCH/MODEL/TASK.json"
    )
    print(score_table(parser.parse_args().metrics))


if __name__ == "__main__":
    run_command(main)
