"""Round trips of a combined checkpoint: pipeline, tensor-parallel and Hugging Face layouts.

Run with: python src/verify.py --checkpoint checkpoints/72b/combined \
    --vision checkpoints/hf/vision --language checkpoints/hf/lm_72b \
    --metrics metrics/72b/round_trips.json

The graph fails here if one did not return every tensor, bit by bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from nvlm.atomic import write_text
from nvlm.checkpoint.verify.round_trips import (
    hugging_face_round_trip,
    pipeline_round_trip,
    tensor_round_trip,
)
from nvlm.errors import UserError, run_command

STAGES = 4  # as the published recipe splits the 72B for fine-tuning
RANKS = 1  # every tensor is merged, and split again


def main() -> None:
    """Write what every round trip returned; fail if one lost or changed a tensor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="combined, not trained yet")
    parser.add_argument("--vision", type=Path, required=True, help="Hugging Face source of it")
    parser.add_argument("--language", type=Path, required=True, help="Hugging Face source of it")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    trips = {
        "pipeline": pipeline_round_trip(arguments.checkpoint, STAGES),
        "tensor": tensor_round_trip(arguments.checkpoint, RANKS),
        "hugging_face": hugging_face_round_trip(
            arguments.checkpoint, arguments.vision, arguments.language
        ),
    }
    metrics = {name: dataclasses.asdict(trip) for name, trip in trips.items()}
    for name, trip in trips.items():
        if trip.different:
            raise UserError(
                f"the {name} round trip of {arguments.checkpoint} changed {trip.different} of "
                f"{trip.tensors} tensors, first {trip.first}: don't train on it"
            )
        del metrics[name]["first"]
    write_text(arguments.metrics, json.dumps(metrics, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    run_command(main)
