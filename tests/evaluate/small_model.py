"""A small model with random weights, a few questions, and its answers by a plain loop."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.checkpoint.models import save_language, save_vision
from tests.evaluate import fixtures
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nvlm.checkpoint.huggingface.convert import convert_language, convert_vision
from nvlm.checkpoint.parts.projector import ProjectorParams
from nvlm.checkpoint.relayout.combine import combine
from nvlm.evaluate.answering.answers import read_answers
from nvlm.evaluate.answering.generation import decode, stop_tokens
from nvlm.evaluate.answering.prompter import Prompter
from nvlm.evaluate.params import (
    AskParams,
    GenerateParams,
    GroundTruthParams,
    RunParams,
    TaskParams,
)
from nvlm.evaluate.question import Question
from nvlm.model.prompts import SYSTEM
from nvlm.model.tokens import TEXT, load_tokenizer
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.parallel.state import load_model

ROOT = Path(__file__).parents[2]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
MAX_NEW = 6
PARAMS = GenerateParams(max_tiles=6, thumbnail=True, tile_tags=True, dtype="float32")
ASK = AskParams(system=SYSTEM, prompt="{question}", max_new_tokens=MAX_NEW)
TASK = TaskParams(ground_truth=GroundTruthParams(reader="vqav2"), metric="vqa", ask=ASK)


def save_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """One token a byte, and ChatML's control tokens: 259 tokens."""
    vocabulary = {
        byte: place for place, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(directory)
    return fast


def make_checkpoint(directory: Path, tensor: int) -> Path:
    """Random halves joined for ``tensor`` ranks; the same for every number of ranks."""
    save_vision(directory / "hf_vision")
    model = save_language(directory / "hf_language", "qwen2", vocabulary=259)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():  # with a mean of 0, or one token would always win
            if parameter.ndim == 2:
                parameter.normal_(0, 1, generator=generator)
    model.save_pretrained(directory / "hf_language")
    config = json.loads((directory / "hf_language/config.json").read_text())
    config["max_position_embeddings"] = 256
    (directory / "hf_language/config.json").write_text(json.dumps(config))
    save_tokenizer(directory / "hf_language")
    convert_vision(directory / "hf_vision", directory / "vision", tensor=tensor)
    convert_language(
        directory / "hf_language", directory / "language", tensor=tensor, vocabulary_multiple=8
    )
    params = ProjectorParams(init_std=0.5, seed=1)
    combine(directory / "vision", directory / "language", directory / "combined", params)
    return directory / "combined"


def make_questions(directory: Path) -> Path:
    """Pictures of one, three and five tiles, questions of different lengths."""
    rng = np.random.default_rng(1)
    records = []
    for number, width in enumerate((24, 48, 96, 24, 96)):
        name = f"{number}.png"
        pixels = rng.integers(256, size=(24, width, 3), dtype=np.uint8)
        (directory / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(directory / "images" / name)
        question = "why? " * (1 + number * 2 % 5)
        record = {"image": name, "question_id": number, "question": question, "answer": ["x"]}
        records.append(record)
    (directory / "questions.json").write_text(json.dumps(records))
    return directory


def write_params(directory: Path, batch_size: int) -> None:
    (directory / "params.yaml").write_text(
        f"""
launch: {{kind: local, device: cpu, stop_seconds: 7}}
eval:
  generate:
    {{max_tiles: 6, thumbnail: true, tile_tags: true, dtype: float32}}
  run:
    {{batch_size: {batch_size}, tile_chunk: 3, concurrency: 2, retries: 2, timeout: 30,
      answer_ahead: false}}
  tasks:
    VQAv2:
      ground_truth: {{reader: vqav2}}
      metric: vqa
      ask: {{system: "{SYSTEM}", prompt: "{{question}}", max_new_tokens: {MAX_NEW}}}
"""
    )


def run_generate(
    directory: Path, checkpoint: Path, batch_size: int, *options: str
) -> subprocess.CompletedProcess[str]:
    write_params(directory, batch_size)
    arguments = ["--params", "eval.generate", "--task", "VQAv2", "--data", "data"]
    arguments += ["--checkpoint", str(checkpoint), "--out", "answers.jsonl"]
    return subprocess.run(
        [sys.executable, ROOT / "src/generate.py", *arguments, *options],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def run_params(batch_size: int) -> RunParams:
    return RunParams(
        batch_size=batch_size,
        tile_chunk=3,
        concurrency=2,
        retries=2,
        timeout=30,
        answer_ahead=False,
    )


def texts(path: Path, questions: Sequence[Question]) -> list[str]:
    return [answer.text for answer in read_answers(path, questions)]


def reference_answers(checkpoint: Path, data: Path) -> list[str]:
    """The most likely next token again and again, the whole row read anew each time."""
    with parallel_mesh(GridParams(tensor=1)) as mesh, torch.no_grad():
        model = load_model(checkpoint, mesh, torch.float32, gather_logits=True)
        tokenizer = load_tokenizer(checkpoint / "tokenizer")
        prompter = Prompter(tokenizer, model.architecture, PARAMS, ASK)
        stop = stop_tokens(tokenizer)
        answers = []
        for question in fixtures.read(data, "vqav2"):
            sample = prompter.encode(question)
            ids = sample.conversation.input_ids.tolist()
            visual = sample.conversation.visual_index.tolist()
            tiles = torch.tensor(sample.tiles).permute(0, 3, 1, 2)
            features = model.encode_tiles(tiles).flatten(0, 1)[None]
            start = len(ids)
            while len(ids) < start + MAX_NEW and (len(ids) == start or ids[-1] not in stop):
                length = len(ids)
                hidden = model(
                    torch.tensor([ids]),
                    position_ids=torch.arange(length)[None],
                    segment_ids=torch.ones(1, length, dtype=torch.long),
                    visual_index=torch.tensor([visual + [TEXT] * (length - start)]),
                    features=features,
                )
                logits = model.language_model.lm_head(hidden[0, -1])
                ids.append(int(logits[: model.vocabulary].argmax()))
            answers.append(decode(tokenizer, ids[start:], stop))
        return answers


def become_only_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process the only rank of its group: starting another takes ten seconds."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    for name, value in {**variables, "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
