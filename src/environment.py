"""Task 1: compare what the chosen scale needs with what this machine has.

Run with: python src/environment.py --out metrics/environment.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nvlm.atomic import write_text
from nvlm.environment import EnvironmentParams, requirements
from nvlm.errors import UserError, run_command
from nvlm.evaluate.params import EvaluationParams
from nvlm.launch.stage import LaunchParams
from nvlm.params import load_params


def main() -> None:
    """Print the comparison; fail with everything that is lacking in one message.

    The output says only that the scale can run: it is the same on every machine that can, so that
    moving to another one reruns nothing. What the last stages will ask and score is read here too:
    a misspelt prompt or metric is to fail before anything is trained.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    params = load_params("environment", EnvironmentParams)
    load_params("eval", EvaluationParams)
    elsewhere = load_params("launch", LaunchParams).kind != "local"
    compared = list(requirements(params, elsewhere=elsewhere))
    print(f"{'':24}{'needed':>12}{'here':>16}")
    for row in compared:
        print(f"{row.what:24}{row.needed:>12}{row.here:>16}{'' if row.met else '  lacking'}")
    lacking = [row.sentence for row in compared if not row.met]
    if lacking:
        raise UserError(
            f"scale={params.scale} needs {', '.join(lacking)}: use a larger machine, or scale=smoke"
        )
    write_text(arguments.out, json.dumps({"ready": True, "scale": params.scale}) + "\n")


if __name__ == "__main__":
    run_command(main)
