"""The first losses of fine-tuning at smoke scale, from stand-ins as they are before any training.

Run with: python -m tests.train.golden (writes tests/train/golden.json, where a change means to)
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

from nvlm.checkpoint.huggingface.convert import convert_language, convert_vision
from nvlm.checkpoint.parts.projector import ProjectorParams
from nvlm.checkpoint.relayout.combine import combine
from nvlm.data.loading.loader import build_loader
from nvlm.launch.local import launch
from nvlm.model.language import Stage, build_decoder
from nvlm.model.tokens import load_tokenizer
from nvlm.model.vision import build_tower
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.params import load_params
from nvlm.standin.language import LanguageStandin, learn_tokenizer, write_language
from nvlm.standin.training import reproducible
from nvlm.standin.vision import VisionStandin, initialise
from nvlm.standin.vision_layout import write_vision
from nvlm.train.params import TrainParams
from nvlm.train.trainer import Trainer

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = 10


def build_checkpoint(branch: str, directory: Path) -> Path:
    """The smoke model of ``branch`` with seeded random weights, for one process."""
    reproducible(seed=1)
    vision = load_params("standin.vision", VisionStandin).architecture
    standin = load_params(f"standin.lm_{branch}", LanguageStandin)
    language = standin.architecture
    assert vision is not None and language is not None
    tower = build_tower(vision).eval()
    initialise(tower, vision)
    (directory / "vision").mkdir(parents=True)
    write_vision(directory / "vision", tower, vision)
    whole = Stage(first=0, last=language.layers)
    decoder = build_decoder(language, language.vocabulary, whole).eval()
    tokenizer = learn_tokenizer(language, standin.tokenizer_size)
    write_language(directory / "language", decoder, tokenizer, "5GB")
    convert_vision(directory / "vision", directory / "core_vision", tensor=1)
    convert_language(
        directory / "language", directory / "core_language", tensor=1, vocabulary_multiple=128
    )
    out = directory / "combined"
    params = ProjectorParams(init_std=0.02, seed=1)
    combine(directory / "core_vision", directory / "core_language", out, params)
    return out


def write_losses(branch: str, checkpoint: Path, data: Path, out: Path) -> None:
    """Worker: losses and gradient norms of the first steps, as a list of pairs."""
    grid = GridParams(tensor=1)
    params = load_params(f"train.sft_{branch}", TrainParams)
    stream = replace(params.data, blend={"shapes": 1.0}, workers=0)
    params = replace(params, grid=grid, data=stream)
    with parallel_mesh(grid) as mesh:
        trainer = Trainer(params, checkpoint, mesh)
        loader = build_loader(
            data,
            stream,
            tokenizer=load_tokenizer(checkpoint / "tokenizer"),
            architecture=trainer.model.architecture,
            rows=params.global_batch,
            rank=0,
            world=1,
        )
        history = []
        for number, batch in enumerate(islice(loader, STEPS), start=1):
            result = trainer.step(number, batch)
            history.append((round(result.loss, 6), round(result.gradient_norm, 6)))
    out.write_text(json.dumps(history))


def losses(branch: str, data: Path, directory: Path) -> list[list[float]]:
    """(loss, gradient norm) of the first steps of ``branch`` on ``data``'s dataset "shapes"."""
    checkpoint = build_checkpoint(branch, directory)
    launch(write_losses, 1, branch, checkpoint, data, directory / "losses.json")
    return json.loads((directory / "losses.json").read_text())


def main() -> None:
    from tests.train.conftest import prepare_shapes

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        prepare_shapes(directory / "data")
        golden = {b: losses(b, directory / "data", directory / b) for b in ("34b", "72b")}
    text = json.dumps(golden, indent=1)
    GOLDEN.write_text(text + "\n")


if __name__ == "__main__":
    main()
