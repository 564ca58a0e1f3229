"""Task 2: the licences of what was downloaded, as a table to read before sharing a checkpoint.

Run with: python src/licences.py --source checkpoints/hf/vision --source checkpoints/hf/lm_34b \\
              --out reports/licences.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nvlm.atomic import write_text
from nvlm.errors import UserError, run_command


def main() -> None:
    """Read each download's note and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", type=Path, action="append", required=True, help="a download")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    arguments = parser.parse_args()
    lines = ["# Licences", "", "| model | revision | licence |", "|---|---|---|"]
    for source in arguments.source:
        path = source / "source.json"
        if not path.is_file():
            raise UserError(f"{path} is missing: run the download's stage")
        note = json.loads(path.read_text(encoding="utf-8"))
        lines.append(f"| {note['repo']} | {note['revision']} | {note.get('licence', 'unknown')} |")
    write_text(arguments.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    run_command(main)
