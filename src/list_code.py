"""What each script is made of, so that an edit reruns the stages whose outputs it can change.

Run with: python src/list_code.py --out stages/code
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.atomic import atomic_directory
from nvlm.closure import listing
from nvlm.errors import run_command


def main() -> None:
    """Write NAME.txt for each script src/NAME.py."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="directory of lists to write")
    arguments = parser.parse_args()
    with atomic_directory(arguments.out) as partial:
        for script in sorted(Path("src").glob("*.py")):
            (partial / f"{script.stem}.txt").write_text(listing(script))


if __name__ == "__main__":
    run_command(main)
