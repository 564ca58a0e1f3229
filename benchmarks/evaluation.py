"""What evaluation costs: batched answers beside one at a time, and scoring VQAv2's validation set.

Run by hand, after `dvc repro`:

    python benchmarks/evaluation.py --checkpoint checkpoints/72b/sft --data data/eval

Prints the tables of benchmarks/README.md. Both ways to answer go through the same model in one
process on all cores (or OMP_NUM_THREADS of them), in turns, block by block; what is compared
includes images, prompts and text.
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
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from nvlm.checkpoint.relayout.reshard import reshard
from nvlm.errors import run_command
from nvlm.evaluate.answering.answers import Answer
from nvlm.evaluate.answering.generation import decode, generate_answers, stop_tokens
from nvlm.evaluate.answering.prompter import Prompter, left_pad
from nvlm.evaluate.ground_truth.readers import read_questions
from nvlm.evaluate.params import EvaluationParams, RunParams
from nvlm.evaluate.question import Question, QuestionId
from nvlm.launch.local import launch
from nvlm.model.nvlm import NVLM, features_by_row
from nvlm.model.tokens import load_tokenizer
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import Mesh, parallel_mesh
from nvlm.parallel.state import load_model
from nvlm.params import load_params

TASKS = ("captioning", "TextVQA", "VQAv2", "MMMU")
BATCH = 32
QUESTIONS = 128  # of each task
TURNS = 5  # of each way
VQAV2_QUESTIONS, VQAV2_IMAGES = 214_354, 40_504  # of VQAv2's validation set
PER_IMAGE = VQAV2_QUESTIONS // VQAV2_IMAGES
WORDS = "yes no 1 2 3 red blue white the a dog cat two man's left tennis racket frisbee 10:30 none"
SPEAKERS = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model to ask")
    parser.add_argument("--data", type=Path, required=True, help="directory of TASK directories")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    params = load_params("eval", EvaluationParams)
    wall, processor = scoring_seconds()
    print(
        f"Scoring {VQAV2_QUESTIONS:,} VQAv2 answers: {wall:.1f} s, {processor:.1f} s of one core\n"
    )
    with tempfile.TemporaryDirectory(prefix="nvlm-benchmark-") as scratch:
        single = Path(scratch) / "single"
        reshard(arguments.checkpoint, single, tensor=1)
        print(
            f"{os.environ['OMP_NUM_THREADS']} threads\n\n"
            f"| task | one at a time | batches of {BATCH} | ratio |\n|---|---|---|---|",
            flush=True,
        )
        launch(measure, 1, single, arguments.data, params)


def measure(checkpoint: Path, data: Path, params: EvaluationParams) -> None:
    """Print the table of answers a second."""
    with parallel_mesh(GridParams(tensor=1)) as mesh:
        model = load_model(checkpoint, mesh, torch.float32, gather_logits=True)
        tokenizer = load_tokenizer(checkpoint / "tokenizer")
        rates: list[tuple[float, float]] = []
        for name, shared in [*((name, False) for name in TASKS), ("VQAv2", True)]:
            task = params.tasks[name]
            questions = read_questions(data / name, task.ground_truth)[:QUESTIONS]
            if shared:
                questions = sharing_images(questions)
            prompter = Prompter(tokenizer, model.architecture, params.generate, task.ask)
            run = replace(params.run, batch_size=BATCH)
            answer_alone(model, prompter, questions[0])  # warm up
            answer_together(model, prompter, questions[:BATCH], run, mesh)
            alone, together = [], []
            for _ in range(TURNS):
                start = time.perf_counter()
                one_by_one = {each.id: answer_alone(model, prompter, each) for each in questions}
                alone.append(len(questions) / (time.perf_counter() - start))
                start = time.perf_counter()
                batched = answer_together(model, prompter, questions, run, mesh)
                together.append(len(questions) / (time.perf_counter() - start))
                assert one_by_one == batched, "the batch changed an answer"
            one, many = statistics.median(alone), statistics.median(together)
            label = f"{name}, {PER_IMAGE} questions an image" if shared else name
            print(row(label, one, many), flush=True)
            if not shared:
                rates.append((one, many))
        one, many = (statistics.harmonic_mean(way) for way in zip(*rates, strict=True))
        print(row(f"the first {len(TASKS)}, as many questions each", one, many))


def row(label: str, one: float, many: float) -> str:
    """Of the table, with questions a second."""
    return f"| {label} | {one:.1f}/s | {many:.1f}/s | {many / one:.1f} |"


def sharing_images(questions: Sequence[Question]) -> list[Question]:
    """``questions`` about fewer images: as many each as VQAv2's validation set has."""
    return [
        replace(question, images=questions[place // PER_IMAGE].images)
        for place, question in enumerate(questions)
    ]


def answer_alone(model: NVLM, prompter: Prompter, question: Question) -> str:
    """The plain way: encode one question, run the tower, let transformers generate."""
    batch = left_pad([prompter.encode(question)])
    stop_ids = stop_tokens(prompter.tokenizer)
    features = features_by_row(model.encode_tiles(batch.tiles), batch.tiles_per_row)
    with torch.no_grad():
        embedded = model.embed(batch.input_ids, batch.visual_index, features)
    generated = model.generate(
        embedded,
        batch.attention_mask,
        max_new_tokens=prompter.ask.max_new_tokens,
        stop_ids=stop_ids,
    )
    return decode(prompter.tokenizer, generated[0].tolist(), stop_ids)


def answer_together(
    model: NVLM, prompter: Prompter, questions: Sequence[Question], run: RunParams, mesh: Mesh
) -> dict[QuestionId, str]:
    """The project's way."""
    given: list[Answer] = []
    group = mesh.tensor.get_group()
    generate_answers(model, prompter, questions, run, group=group, write=given.extend)
    return {answer.question_id: answer.text for answer in given}


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
