"""Task 3: one training dataset, from its source to webdataset shards indexed by Energon.

Run with: python src/prepare_dataset.py --params data.sft.easy_vqa \\
              --out data/sft/easy_vqa --metrics metrics/data/sft_easy_vqa.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.prepare import prepare_dataset
from nvlm.errors import run_command
from nvlm.params import load_params


def main() -> None:
    """Read the arguments and prepare the dataset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--params", required=True, help="section of params.yaml: data.sft.NAME")
    parser.add_argument("--out", type=Path, required=True, help="directory of shards to write")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON of counts to write")
    arguments = parser.parse_args()
    prepare_dataset(load_params(arguments.params, DatasetParams), arguments.out, arguments.metrics)


if __name__ == "__main__":
    run_command(main)
