"""Answers against a plain loop over one unpadded question at a time, without a cache."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.checkpoint.build import with_adapter
from tests.evaluate import fixtures
from tests.evaluate.small_model import (
    MAX_NEW,
    PARAMS,
    SPECIALS,
    TASK,
    become_only_rank,
    make_checkpoint,
    make_questions,
    reference_answers,
    run_generate,
    run_params,
    save_tokenizer,
    texts,
)

from nvlm.checkpoint.format.adapter import Adapter
from nvlm.checkpoint.format.architecture import (
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)
from nvlm.checkpoint.relayout.merge import merge_adapter
from nvlm.checkpoint.relayout.repartition import repartition
from nvlm.data.loading.batch import EncodedSample
from nvlm.data.shards.images import storable
from nvlm.errors import UserError
from nvlm.evaluate.answering.generation import batches_by_length, decode, stop_tokens
from nvlm.evaluate.answering.prompter import Prompter, left_pad
from nvlm.evaluate.answering.worker import Asking, work
from nvlm.evaluate.params import (
    AskParams,
)
from nvlm.evaluate.question import Question
from nvlm.model.tiling import Tiling, tile_image
from nvlm.model.tokens import EncodedConversation
from nvlm.parallel.grid import GridParams


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
        asking = Asking(task=TASK, checkpoint=checkpoint, data=data, out=out)
        grid, run = GridParams(tensor=1), run_params(batch_size)
        work(grid, PARAMS, run, asking)
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


def test_an_adapter_answers_as_the_model_that_it_is_folded_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    become_only_rank(monkeypatch)
    monkeypatch.chdir(tmp_path)
    data = make_questions(tmp_path / "data")
    base, adapted, merged = (tmp_path / name for name in ("combined", "adapted", "merged"))
    make_checkpoint(tmp_path, tensor=1)
    with_adapter(base, adapted, Adapter(rank=4, alpha=40.0, targets=("q_proj", "down_proj")))
    merge_adapter(adapted, merged)
    asking = Asking(task=TASK, checkpoint=adapted, data=data, out=tmp_path / "answers.jsonl")
    work(GridParams(tensor=1), PARAMS, run_params(2), asking)
    found = texts(asking.out, fixtures.read(data, "vqav2"))
    assert found == reference_answers(merged, data)
    assert found != reference_answers(base, data)


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
            key="sample",
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


def test_a_blank_image_is_grey_and_as_large(tmp_path: Path):
    Image.effect_noise((96, 24), 90).save(tmp_path / "x.png")
    question = Question(id=1, images=(tmp_path / "x.png",), text="?", references=("a",))
    prompter = small_prompter(tmp_path, MAX_NEW)
    shown = prompter.encode(question)
    prompter.blank = True
    blank = prompter.encode(question)
    assert blank.tiles.shape == shown.tiles.shape
    assert len(np.unique(shown.tiles)) > 1
    assert np.unique(blank.tiles).tolist() == [128]
    assert blank.conversation.input_ids.tolist() == shown.conversation.input_ids.tolist()


# Where EXIF's orientation says that an image's first row and first column belong.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: np.rot90,
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_an_image_is_shown_upright_as_in_training(tmp_path: Path, orientation: int, form: str):
    upright = np.random.default_rng(0).integers(256, size=(24, 72, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x"
    stored = np.ascontiguousarray(TURNS[orientation](upright))
    Image.fromarray(stored).save(path, form, exif=exif)
    question = Question(id=1, images=(path,), text="?", references=("a",))
    prompter = small_prompter(tmp_path, MAX_NEW)
    assert prompter.grids(question) == ((3, 1),)
    tiles = prompter.encode(question).tiles
    assert tiles[:3].tolist() == [upright[:, 24 * n : 24 * n + 24].tolist() for n in range(3)]
    with Image.open(io.BytesIO(storable(path.read_bytes()).data)) as trained:
        tiling = Tiling(max_tiles=PARAMS.max_tiles, thumbnail=PARAMS.thumbnail)
        assert (tiles == tile_image(trained, 24, tiling)).all()
    prompter.blank = True
    assert prompter.encode(question).tiles.shape == tiles.shape


def test_several_images_share_the_tiles_of_one(tmp_path: Path):
    Image.new("RGB", (24 * 6, 24)).save(tmp_path / "wide.png")
    text = "Is <image 1> as wide as <image 2>?"
    images = (tmp_path / "wide.png",) * 2
    question = Question(id=1, images=images, text=text, references=("a",))
    prompter = small_prompter(tmp_path, MAX_NEW)
    assert prompter.grids(question) == ((6, 1),)
    prompter.ask = dataclasses.replace(prompter.ask, images="all")
    assert prompter.grids(question) == ((3, 1), (3, 1))
    sample = prompter.encode(question)
    assert len(sample.tiles) == 2 * (3 + 1)  # with thumbnails
    assert prompter.length(question) == len(sample)


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
