"""Task 3: the files of one source, as their publisher ships them.

Run with: python src/fetch_data.py --source coco_2017 --out data/raw/coco_2017.json

The files lie beside the manifest, in data/raw/coco_2017. The manifest, which names them with sizes
and digests, is what DVC tracks: what has arrived whole is neither fetched nor hashed again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.errors import run_command
from nvlm.fetch.fetching import FetchParams, fetch_source
from nvlm.fetch.lock import SourcesLock
from nvlm.fetch.sources import Source
from nvlm.params import load_params


def main() -> None:
    """Read the arguments and fetch the source."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", required=True, help="a name of data.sources in params.yaml")
    parser.add_argument("--out", type=Path, required=True, help="manifest to write")
    parser.add_argument("--lock", type=Path, default=Path("data/sources.lock"), help="digests")
    arguments = parser.parse_args()
    fetch_source(
        arguments.source,
        load_params(f"data.sources.{arguments.source}", Source),
        arguments.out,
        load_params("data.fetch", FetchParams),
        SourcesLock(arguments.lock),
    )


if __name__ == "__main__":
    run_command(main)
