"""What evaluation costs: batched answers beside one at a time, and scoring VQAv2's validation set.

Run by hand, after `dvc repro`:

    python benchmarks/evaluation.py --checkpoint checkpoints/72b/sft --data data/eval

Prints the tables of benchmarks/README.md. Both ways to answer go through the same model in one
process on one core, in turns, block by block; what is compared includes images, prompts and text.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from nvlm.checkpoint.reshard import reshard
from nvlm.errors import run_command
from nvlm.evaluate.generation import answer_batch, batches_by_length
from nvlm.evaluate.ground_truth.readers import read_questions
from nvlm.evaluate.params import EvaluationParams
from nvlm.evaluate.prompter import Prompter
from nvlm.evaluate.question import Question
from nvlm.model.tokens import load_tokenizer
from nvlm.parallel.launch import launch
from nvlm.parallel.mesh import GridParams, parallel_mesh
from nvlm.parallel.state import load_model
from nvlm.params import load_params

TASKS = ("captioning", "TextVQA", "VQAv2", "MMMU")
BATCH = 32
QUESTIONS = 128  # of each task
BLOCKS = 4  # turns of each way
VQAV2_QUESTIONS, VQAV2_IMAGES = 214_354, 40_504  # of VQAv2's validation set
WORDS = "yes no 1 2 3 red blue white the a dog cat two man's left tennis racket frisbee 10:30 none"
SPEAKERS = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model to ask")
    parser.add_argument("--data", type=Path, required=True, help="directory of TASK directories")
    arguments = parser.parse_args()
    params = load_params("eval", EvaluationParams)
    wall, processor = scoring_seconds()
    print(
        f"Scoring {VQAV2_QUESTIONS:,} VQAv2 answers: {wall:.1f} s, {processor:.1f} s of one core\n"
    )
    with tempfile.TemporaryDirectory(prefix="nvlm-benchmark-") as scratch:
        single = Path(scratch) / "single"
        reshard(arguments.checkpoint, single, tensor=1)
        print(
            f"| task | one at a time | batches of {BATCH} | ratio |\n|---|---|---|---|", flush=True
        )
        launch(measure, 1, single, arguments.data, params)


def measure(checkpoint: Path, data: Path, params: EvaluationParams) -> None:
    """Print the table of answers a second."""
    with parallel_mesh(GridParams(tensor=1)) as mesh:
        model = load_model(checkpoint, mesh, torch.float32, gather_logits=True)
        tokenizer = load_tokenizer(checkpoint / "tokenizer")
        for name in TASKS:
            task = params.tasks[name]
            questions = read_questions(data / name, task.ground_truth)[:QUESTIONS]
            prompter = Prompter(tokenizer, model.architecture, params.generate, task.ask)

            def answers(
                asked: Sequence[Question],
                size: int,
                prompter: Prompter = prompter,
                chunk: int = params.run.tile_chunk,
            ) -> dict[object, str]:
                lengths = [prompter.length(question) for question in asked]
                given: dict[object, str] = {}
                for places in batches_by_length(lengths, size):
                    batch = [asked[place] for place in places]
                    texts = answer_batch(model, prompter, batch, chunk, mesh.tensor.get_group())
                    given |= {
                        question.id: text for question, text in zip(batch, texts, strict=True)
                    }
                return given

            answers(questions[:BATCH], BATCH)  # warm up
            rates: dict[int, list[float]] = {1: [], BATCH: []}
            for block in range(BLOCKS):
                asked = questions[block * BATCH : (block + 1) * BATCH]
                given = []
                for size, taken in rates.items():
                    start = time.perf_counter()
                    given.append(answers(asked, size))
                    taken.append(len(asked) / (time.perf_counter() - start))
                assert given[0] == given[1], "the batch changed an answer"
            one, batched = (statistics.median(values) for values in rates.values())
            print(f"| {name} | {one:.1f}/s | {batched:.1f}/s | {batched / one:.1f} |", flush=True)


def scoring_seconds() -> tuple[float, float]:
    """Time of src/score.py on a synthetic set as large as VQAv2's: by the clock, and of a core."""
    score = Path(__file__).parents[1] / "src/score.py"
    with tempfile.TemporaryDirectory(prefix="nvlm-benchmark-") as name:
        directory = Path(name)
        write_vqav2(directory)
        paths = [
            "--metrics",
            "metrics.json",
            "--gallery",
            "gallery.png",
            "--confusion",
            "pairs.csv",
        ]
        command = [sys.executable, str(score), "--task", "VQAv2", "--data", "data", *paths]
        start, used = time.perf_counter(), _children_seconds()
        subprocess.run(
            [*command, "--generated", "answers.jsonl"],
            cwd=directory,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return time.perf_counter() - start, _children_seconds() - used


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write_vqav2(directory: Path) -> None:
    """Questions with ten answers each that agree about as often as people do, and ours to them."""
    (directory / "params.yaml").write_bytes(Path("params.yaml").read_bytes())
    (directory / "data/images").mkdir(parents=True)
    first = directory / "data/images/0.png"
    Image.new("RGB", (32, 32)).save(first)
    for number in range(1, VQAV2_IMAGES):
        first.with_name(f"{number}.png").hardlink_to(first)
    rng = random.Random(1)
    words = WORDS.split()
    vocabulary = [" ".join(rng.choices(words, k=rng.choice((1, 1, 2, 3)))) for _ in range(20_000)]
    questions, answers = [], []
    for number in range(VQAV2_QUESTIONS):
        likely = rng.choice(vocabulary)
        given = [likely if rng.random() < 0.7 else rng.choice(vocabulary) for _ in range(SPEAKERS)]
        question = {"image": f"{number % VQAV2_IMAGES}.png", "question_id": number}
        questions.append(question | {"question": "What is it?", "answer": given})
        text = likely if rng.random() < 0.6 else rng.choice(vocabulary)
        answers.append({"question_id": number, "prompt": "What is it?", "answer": text})
    (directory / "data/questions.json").write_text(json.dumps(questions))
    lines = (json.dumps(answer) + "\n" for answer in answers)
    (directory / "answers.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    run_command(main)
