"""Answers against a plain loop over one unpadded question at a time, without a cache."""

import argparse
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

import generate
from nvlm.checkpoint.architecture import (
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)
from nvlm.checkpoint.combine import combine
from nvlm.checkpoint.convert import convert_language, convert_vision
from nvlm.checkpoint.projector import ProjectorParams
from nvlm.checkpoint.repartition import repartition
from nvlm.data.batch import EncodedSample
from nvlm.errors import UserError
from nvlm.evaluate.answers import read_answers
from nvlm.evaluate.generation import batches_by_length, decode, stop_tokens
from nvlm.evaluate.params import (
    AskParams,
    GenerateParams,
    GroundTruthParams,
    RunParams,
    TaskParams,
)
from nvlm.evaluate.prompter import Prompter, left_pad
from nvlm.evaluate.question import Question
from nvlm.model.tokens import TEXT, EncodedConversation, load_tokenizer
from nvlm.parallel.mesh import GridParams, parallel_mesh
from nvlm.parallel.state import load_model

ROOT = Path(__file__).parents[2]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
MAX_NEW = 6
PARAMS = GenerateParams(max_tiles=6, thumbnail=True, tile_tags=True, dtype="float32")
ASK = AskParams(system="s", prompt="{question}", max_new_tokens=MAX_NEW)
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
eval:
  generate:
    {{max_tiles: 6, thumbnail: true, tile_tags: true, dtype: float32}}
  run: {{batch_size: {batch_size}, tile_chunk: 3, concurrency: 2, retries: 2, timeout: 30}}
  tasks:
    VQAv2:
      ground_truth: {{reader: vqav2}}
      metric: vqa
      ask: {{system: s, prompt: "{{question}}", max_new_tokens: {MAX_NEW}}}
"""
    )


def run_generate(
    directory: Path, checkpoint: Path, batch_size: int
) -> subprocess.CompletedProcess[str]:
    write_params(directory, batch_size)
    arguments = ["--params", "eval.generate", "--task", "VQAv2", "--data", "data"]
    arguments += ["--checkpoint", str(checkpoint), "--out", "answers.jsonl"]
    return subprocess.run(
        [sys.executable, ROOT / "src/generate.py", *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def run_params(batch_size: int) -> RunParams:
    return RunParams(batch_size=batch_size, tile_chunk=3, concurrency=2, retries=2, timeout=30)


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
                logits = model(
                    torch.tensor([ids]),
                    position_ids=torch.arange(length)[None],
                    segment_ids=torch.ones(1, length, dtype=torch.long),
                    visual_index=torch.tensor([visual + [TEXT] * (length - start)]),
                    features=features,
                )
                ids.append(int(logits[0, -1, : model.vocabulary].argmax()))
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


def test_answers_are_those_of_one_question_at_a_time_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    become_only_rank(monkeypatch)
    monkeypatch.chdir(tmp_path)
    data = make_questions(tmp_path / "data")
    checkpoint = make_checkpoint(tmp_path / "one", tensor=1)
    reference = reference_answers(checkpoint, data)
    assert len(set(reference)) > 2  # the pictures and questions matter
    questions = fixtures.read(data, "vqav2")
    for batch_size in (1, 2, 5):
        out = tmp_path / f"{batch_size}.jsonl"
        arguments = argparse.Namespace(
            checkpoint=checkpoint, data=data, out=out, blank=False, server=None
        )
        grid, run = GridParams(tensor=1), run_params(batch_size)
        generate.work(grid, PARAMS, run, TASK, arguments)
        assert texts(out, questions) == reference


def test_two_ranks_give_the_answers_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = make_questions(tmp_path / "data")
    two = make_checkpoint(tmp_path / "two", tensor=2)
    result = run_generate(tmp_path, two, batch_size=5)
    assert result.returncode == 0, result.stderr
    questions = fixtures.read(data, "vqav2")
    answers = texts(tmp_path / "answers.jsonl", questions)
    one = make_checkpoint(tmp_path / "one", tensor=1)
    become_only_rank(monkeypatch)
    assert answers == reference_answers(one, data)


def test_a_pipelined_checkpoint_is_refused_in_one_sentence(tmp_path: Path):
    make_questions(tmp_path / "data")
    combined = make_checkpoint(tmp_path, tensor=1)
    repartition(combined, tmp_path / "split", pipeline=2)
    result = run_generate(tmp_path, tmp_path / "split", 2)
    assert result.returncode == 2
    assert "has 2 pipeline stages, and generation wants 1" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "answers.jsonl").exists()


def test_batches_hold_neighbours_by_length_the_longest_first():
    assert list(batches_by_length([3, 9, 3, 7, 1], 2)) == [[1, 3], [0, 2], [4]]


def test_prompts_are_padded_on_the_left():
    samples = [
        EncodedSample(
            conversation=EncodedConversation(
                input_ids=np.array(ids),
                labels=np.full(len(ids), -100),
                visual_index=np.array(visual),
            ),
            tiles=np.full((count, 2, 2, 3), count, dtype=np.uint8),
        )
        for ids, visual, count in (([5, 0, 0, 6], [-1, 0, 1, -1], 2), ([7, 0], [-1, 0], 1))
    ]
    batch = left_pad(samples)
    assert batch.input_ids.tolist() == [[5, 0, 0, 6], [0, 0, 7, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch.visual_index.tolist() == [[-1, 0, 1, -1], [-1, -1, -1, 0]]
    assert batch.tiles.shape == (3, 3, 2, 2)
    assert (batch.tiles_per_row.tolist(), batch.tiles[:, 0, 0, 0].tolist()) == ([2, 1], [2, 2, 1])


def test_an_answer_ends_at_the_first_stop_token(tmp_path: Path):
    tokenizer = save_tokenizer(tmp_path)
    end, end_of_text = (tokenizer.get_added_vocab()[token] for token in SPECIALS[1:])
    assert stop_tokens(tokenizer) == [end, end_of_text]
    ids = tokenizer.encode(" a b\n", add_special_tokens=False)
    assert decode(tokenizer, [*ids, end_of_text, *ids, end], [end, end_of_text]) == "a b"
    assert decode(tokenizer, [end], [end]) == ""
    assert decode(tokenizer, ids, [end]) == "a b"


@pytest.mark.parametrize(
    ("content", "max_new_tokens", "message"),
    [
        (b"", 6, "can't be read"),
        (None, 10_000, "exceed the decoder's 256 positions"),
    ],
)
def test_what_can_not_be_asked_is_named(
    tmp_path: Path, content: bytes | None, max_new_tokens: int, message: str
):
    prompter = small_prompter(tmp_path, max_new_tokens)
    path = tmp_path / "x.png"
    Image.new("RGB", (24, 24)).save(path)
    if content is not None:
        path.write_bytes(content)
    question = Question(id=1, images=(path,), text="?", references=("a",))
    with pytest.raises(UserError, match=message):
        prompter.length(question)


def test_a_truncated_image_is_named(tmp_path: Path):
    path = tmp_path / "x.png"
    Image.effect_noise((24, 24), 90).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    question = Question(id=1, images=(path,), text="?", references=("a",))
    with pytest.raises(UserError, match=r"x\.png can't be decoded"):
        small_prompter(tmp_path, MAX_NEW).encode(question)


def test_lengths_are_known_before_images_are_decoded(tmp_path: Path):
    prompter = small_prompter(tmp_path, MAX_NEW)
    for question in fixtures.read(make_questions(tmp_path / "data"), "vqav2"):
        assert prompter.length(question) == len(prompter.encode(question))


def small_prompter(directory: Path, max_new_tokens: int) -> Prompter:
    vision = VisionArchitecture(
        hidden_size=24,
        layers=2,
        heads=3,
        ffn_hidden_size=40,
        image_size=24,
        patch_size=6,
        norm_epsilon=1e-6,
    )
    language = LanguageArchitecture(
        family="qwen2",
        hidden_size=32,
        layers=4,
        heads=4,
        query_groups=2,
        ffn_hidden_size=48,
        norm_epsilon=1e-5,
        rope_theta=5e6,
        vocabulary=259,
        max_positions=256,
    )
    return Prompter(
        save_tokenizer(directory / "tokenizer"),
        Architecture(vision=vision, language=language),
        PARAMS,
        AskParams(system="s", prompt="{question}", max_new_tokens=max_new_tokens),
    )
