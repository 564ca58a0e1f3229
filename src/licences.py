"""Tasks 2, 3: the licences of models and data, as tables to read before sharing a checkpoint.

Run with: python src/licences.py --source checkpoints/hf/vision --source checkpoints/hf/lm_34b \\
              --out reports/licences.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nvlm.atomic import write_text
from nvlm.data.overview import whence
from nvlm.errors import UserError, run_command
from nvlm.fetch.sources import Source
from nvlm.params import load_params, section_keys


def main() -> None:
    """Read each download's note and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", type=Path, action="append", required=True, help="a download")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    arguments = parser.parse_args()
    lines = ["# Licences", "", "## Models", "", "| model | revision | licence |", "|---|---|---|"]
    for source in arguments.source:
        path = source / "source.json"
        if not path.is_file():
            raise UserError(f"{path} is missing: run the download's stage")
        note = json.loads(path.read_text(encoding="utf-8"))
        lines.append(f"| {note['repo']} | {note['revision']} | {note.get('licence', 'unknown')} |")
    write_text(arguments.out, "\n".join([*lines, "", "## Data", "", *_of_data()]) + "\n")


def _of_data() -> list[str]:
    """A table of the sources that this scale fetches."""
    names = section_keys("data.sources")
    if not names:
        return ["None was fetched: packages bring what this scale reads."]
    lines = ["| source | from | licence |", "|---|---|---|"]
    for name in sorted(names):
        source = load_params(f"data.sources.{name}", Source)
        lines.append(f"| {name} | {whence(source)} | {source.licence} |")
    return lines


if __name__ == "__main__":
    run_command(main)
