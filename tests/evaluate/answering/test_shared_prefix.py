"""Questions that share an image: the answers of a plain loop, for less work."""

import dataclasses
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.evaluate import fixtures
from tests.evaluate.small_model import (
    ASK,
    PARAMS,
    become_only_rank,
    make_checkpoint,
    reference_answers,
    run_generate,
    run_params,
    texts,
)

from nvlm.data.loading.batch import EncodedSample
from nvlm.errors import UserError
from nvlm.evaluate.answering.answers import Answer
from nvlm.evaluate.answering.generation import batches_by_length, generate_answers
from nvlm.evaluate.answering.prompter import Prompter
from nvlm.evaluate.answering.shared_prefix import prompt_tree
from nvlm.evaluate.params import AskParams
from nvlm.evaluate.question import Question
from nvlm.model.tokens import EncodedConversation, load_tokenizer
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.parallel.state import load_model

# Of each question: its image, and what is asked. Two are the same, word for word.
ASKED = [("a", "why? "), ("b", "who is it? "), ("a", "why? "), ("c", "so? "), ("a", "what? " * 3)]
ASKED += [("b", "who are they? "), ("c", "when? "), ("d", "where? ")]
WIDTHS = {"a": 96, "b": 24, "c": 24, "d": 48}  # five tiles, one, one and three


def make_questions(directory: Path) -> Path:
    (directory / "images").mkdir(parents=True)
    rng = np.random.default_rng(2)
    for name, width in WIDTHS.items():
        pixels = rng.integers(256, size=(24, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / "images" / f"{name}.png")
    records = [
        {"image": f"{name}.png", "question_id": number, "question": text, "answer": ["x"]}
        for number, (name, text) in enumerate(ASKED)
    ]
    (directory / "questions.json").write_text(json.dumps(records))
    return directory


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory):
    """A checkpoint, questions, and their answers by a plain loop."""
    directory = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as monkeypatch:
        become_only_rank(monkeypatch)
        data = make_questions(directory / "data")
        checkpoint = make_checkpoint(directory / "model", tensor=1)
        reference = reference_answers(checkpoint, data)
    return checkpoint, data, reference


def answer(
    checkpoint: Path, questions: Sequence[Question], batch_size: int, ask: AskParams = ASK
) -> tuple[dict[object, str], list[int]]:
    """The answers by id, and how many tiles the tower was given each time."""
    with pytest.MonkeyPatch.context() as monkeypatch, ExitStack() as stack:
        become_only_rank(monkeypatch)
        mesh = stack.enter_context(parallel_mesh(GridParams(tensor=1)))
        model = load_model(checkpoint, mesh, torch.float32, gather_logits=True)
        tokenizer = load_tokenizer(checkpoint / "tokenizer")
        encode_tiles, tiles = model.encode_tiles, []

        def counted(given: torch.Tensor) -> torch.Tensor:
            tiles.append(len(given))
            return encode_tiles(given)

        monkeypatch.setattr(model, "encode_tiles", counted)
        given: list[Answer] = []
        generate_answers(
            model,
            Prompter(tokenizer, model.architecture, PARAMS, ask),
            questions,
            dataclasses.replace(run_params(batch_size), tile_chunk=100),
            group=mesh.tensor.get_group(),
            write=given.extend,
        )
        return {each.question_id: each.text for each in given}, tiles


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_the_answers_are_those_of_one_question_at_a_time(one_rank, batch_size: int):
    checkpoint, data, reference = one_rank
    assert len(set(reference)) > 4  # pictures and questions matter
    found, _ = answer(checkpoint, fixtures.read(data, "vqav2"), batch_size)
    assert [found[number] for number in range(len(ASKED))] == reference


def test_the_tower_sees_an_image_once_a_batch(one_rank):
    checkpoint, data, _ = one_rank
    _, tiles = answer(checkpoint, fixtures.read(data, "vqav2"), 8)
    assert tiles == [5 + 1 + 1 + 3]
    # Longest prompts first: a's three, b's two, and so on, cut wherever a batch is full.
    _, tiles = answer(checkpoint, fixtures.read(data, "vqav2"), 3)
    assert tiles[0] == 5
    assert sum(tiles) <= 5 + 3 + 1 + 1 + 1


@pytest.mark.parametrize(
    "ask",
    [
        AskParams(system="", prompt="{question}", max_new_tokens=4),
        AskParams(system="s", prompt="{question}", max_new_tokens=4, images="all"),
    ],
)
def test_other_prompts_whose_batch_changes_nothing(one_rank, ask: AskParams):
    """Without a system turn; with text before and between the images."""
    checkpoint, data, _ = one_rank
    path = {name: data / "images" / f"{name}.png" for name in WIDTHS}
    questions = [
        Question(id=number, images=images, text=text, references=("x",))
        for number, (images, text) in enumerate(
            [
                ((path["a"], path["b"]), "is <image 1> or <image 2>?"),
                ((path["a"], path["b"]), "is <image 1> and <image 2>?"),
                ((path["a"], path["c"]), "is <image 1> or <image 2>?"),
                ((path["b"], path["a"]), "now <image 2>?"),
                ((path["b"], path["c"]), "now <image 2>? and then?"),
                ((path["d"],), "well?"),
            ]
        )
    ]
    alone, _ = answer(checkpoint, questions, 1, ask)
    together, _ = answer(checkpoint, questions, 6, ask)
    assert together == alone
    assert len(set(alone.values())) > 2


def test_two_ranks_share_prefixes_as_one_does(tmp_path: Path, one_rank):
    _, _, reference = one_rank
    data = make_questions(tmp_path / "data")
    two = make_checkpoint(tmp_path / "two", tensor=2)
    result = run_generate(tmp_path, two, batch_size=8)
    assert result.returncode == 0, result.stderr
    assert texts(tmp_path / "answers.jsonl", fixtures.read(data, "vqav2")) == reference


def test_an_image_that_breaks_off_is_named_when_its_batch_comes(tmp_path: Path, one_rank):
    checkpoint, _, reference = one_rank
    data = make_questions(tmp_path / "data")
    path = data / "images/d.png"
    path.write_bytes(path.read_bytes()[:-500])
    questions = fixtures.read(data, "vqav2")
    with pytest.raises(UserError, match=r"d\.png can't be decoded"):
        answer(checkpoint, questions, 3)
    found, _ = answer(checkpoint, questions[:7], 3)
    assert [found[number] for number in range(7)] == reference[:7]


def sample(ids: str, visual: str) -> EncodedSample:
    """A prompt whose tokens are letters; ``visual`` marks images with +."""
    shown = np.array([mark == "+" for mark in visual])
    conversation = EncodedConversation(
        input_ids=np.array([ord(letter) for letter in ids]),
        labels=np.full(len(ids), -100),
        visual_index=np.where(shown, shown.cumsum() - 1, -1),
    )
    return EncodedSample(key="", conversation=conversation, tiles=np.zeros((1, 2, 2, 3), np.uint8))


def spelt(tree):
    return [
        [
            (
                branch.parent,
                "".join(map(chr, branch.piece.conversation.input_ids)),
                len(branch.piece.tiles),
            )
            for branch in level
        ]
        for level in tree
    ]


@pytest.mark.parametrize(
    ("prompts", "images", "levels"),
    [
        # One prompt is read at once.
        ([("sys00?", "---++-")], "a", [[(0, "sys00?", 1)]]),
        # Different images look alike in the ids: the trunk ends before them.
        (
            [("sys00x", "---++-"), ("sys00yz", "---++--")],
            "ab",
            [[(0, "sys", 0)], [(0, "00x", 1), (0, "00yz", 1)]],
        ),
        # One image of all is in the trunk.
        (
            [("sys00x", "---++-"), ("sys00yz", "---++--")],
            "aa",
            [[(0, "sys00", 1)], [(0, "x", 0), (0, "yz", 0)]],
        ),
        # The same prompt twice leaves a token to each.
        ([("s0x", "-+-")] * 2, "aa", [[(0, "s0", 1)], [(0, "x", 0)] * 2]),
        # Three levels; c's image is read in the second as well, so that the third is short.
        (
            [("s0x", "-+-"), ("s0yy", "-+--"), ("s00z", "-++-")],
            "aac",
            [[(0, "s", 0)], [(0, "0", 1), (0, "00", 1)], [(0, "x", 0), (0, "yy", 0), (1, "z", 0)]],
        ),
        # Nothing in common.
        ([("a0x", "-+-"), ("b0x", "-+-")], "ab", [[(0, "a0x", 1), (0, "b0x", 1)]]),
        # Text before the image that differs.
        (
            [("sx0", "--+"), ("sy0", "--+"), ("s0z", "-+-")],
            "aab",
            [[(0, "s", 0)], [(0, "", 0), (0, "0", 1)], [(0, "x0", 1), (0, "y0", 1), (1, "z", 0)]],
        ),
    ],
)
def test_the_tree_of_prompts(prompts, images: str, levels):
    assert spelt(prompt_tree([sample(*prompt) for prompt in prompts], images)) == levels


def test_questions_of_one_image_are_neighbours():
    lengths, images = [3, 9, 4, 8, 5], "abacb"
    assert list(batches_by_length(lengths, 2, images)) == [[1, 4], [3, 2], [0]]
