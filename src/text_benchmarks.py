"""Text benchmarks of a model's decoder, by EleutherAI's lm-evaluation-harness.

Run with: python src/text_benchmarks.py --params eval.text --branch 72b --name sft \
    --metrics metrics/72b/text/sft.json

The harness runs in an environment of its own (make text-setup), on this machine. Of an NVLM_D
directory the decoder is taken out first, beside it, for as long as the harness reads it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nvlm.atomic import write_text
from nvlm.checkpoint.huggingface.decoder import extract_decoder, has_tower
from nvlm.errors import UserError, run_command
from nvlm.evaluate.text.harness import by_shots, command, find_python, run
from nvlm.evaluate.text.params import TextParams
from nvlm.evaluate.text.results import measured, versions
from nvlm.launch.stage import LaunchParams, choose
from nvlm.params import load_params


def main() -> None:
    """Run the tasks, those of one number of shots at a time, and write the metrics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--params", required=True, help="section of params.yaml: eval.text")
    parser.add_argument("--branch", required=True, help="of its models: 34b or 72b")
    parser.add_argument("--name", required=True, help="of the model there")
    parser.add_argument("--metrics", type=Path, required=True, help="scores to write (JSON)")
    arguments = parser.parse_args()
    params = load_params(arguments.params, TextParams)
    models = params.models.get(arguments.branch, {})
    if arguments.name not in models:
        known = ", ".join(models) or "nothing: choose a group of conf/text, such as text=decoders"
        raise UserError(
            f"{arguments.params}.models.{arguments.branch} has no {arguments.name}, but {known}"
        )
    python = find_python(Path(params.environment))
    tasks = params.run()
    left_out = sorted(params.tasks.keys() - tasks.keys())
    if left_out:
        print(f"left out: {', '.join(left_out)} (eval.text.allow_execution)", file=sys.stderr)
    choose(load_params("launch", LaunchParams).device)
    published = {
        task: points[arguments.branch][arguments.name]
        for task, points in params.published.items()
        if arguments.name in points.get(arguments.branch, {})
    }
    scores: dict[str, Any] = {}
    found: dict[str, str] = {}
    with _decoder(Path(models[arguments.name])) as model, TemporaryDirectory() as scratch:
        for number, alike in enumerate(by_shots(tasks)):
            out = Path(scratch) / f"{number}.json"
            words = command(python, model, params, alike, on_gpus=_on_gpus(), out=out)
            results = run(words, alike, out)
            scores |= measured(results, alike, published)
            found |= versions(results, alike)
    content = {**scores, "left_out": left_out, "versions": found}
    write_text(arguments.metrics, f"{json.dumps(content, indent=2, sort_keys=True)}\n")


@contextmanager
def _decoder(model: Path) -> Iterator[Path]:
    """``model``, or of an NVLM_D the decoder, which goes when the block ends."""
    if not has_tower(model):
        yield model
        return
    with TemporaryDirectory(prefix=f".{model.name}.", dir=model.parent) as scratch:
        extract_decoder(model, Path(scratch) / "decoder")
        yield Path(scratch) / "decoder"


def _on_gpus() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    run_command(main)
