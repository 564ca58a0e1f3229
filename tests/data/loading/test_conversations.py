"""What the model is asked and is to answer, by sample type and task."""

import io
import json
from collections import Counter

import numpy as np
import pytest
from megatron.energon import (
    CaptioningSample,
    MultiChoiceVQASample,
    OCRSample,
    SimilarityInterleavedSample,
    TextSample,
    VQASample,
)
from PIL import Image
from tests.data.pictures import encoded_image

from nvlm.data.loading.conversations import boxes_text, conversation_of, images_of
from nvlm.data.loading.encoder import NVLMEncoder
from nvlm.data.loading.loader import build_loader
from nvlm.data.loading.params import LoaderParams
from nvlm.data.published.layouts import Layout
from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.prepare import prepare_dataset
from nvlm.errors import UserError
from nvlm.model.prompts import DESCRIBE, PROMPTS, SYSTEM, Turn
from nvlm.model.tiling import Tiling, tile_image

pytestmark = pytest.mark.filterwarnings("ignore")

BASICS = {"__key__": "0", "__restore_key__": (), "__sources__": ()}


def sample(kind, task=None, **values):
    subflavors = {"task": task} if task else {}
    return kind(**BASICS, __subflavors__=subflavors, **values)


def said(given, seed=0, template="plain", size=(200, 100)):
    user, assistant = conversation_of(given, np.random.default_rng(seed), template, size)
    return user.text, assistant.text


def caption(task=None):
    return sample(CaptioningSample, task, image=b"", caption="a cube")


def test_a_caption_without_a_task_is_asked_for_as_in_evaluation():
    assert said(caption()) == (f"<image>\n{DESCRIBE}", "a cube")


@pytest.mark.parametrize("task", ["captioning", "detailed_captioning"])
def test_prompts_are_drawn_from_the_tasks_list(task):
    asked = {said(caption(task), seed)[0] for seed in range(200)}
    assert asked == {f"<image>\n{prompt}" for prompt in PROMPTS[task]}


def test_only_chatml_has_a_system_turn():
    turns = conversation_of(caption(), np.random.default_rng(0), "chatml", None)
    assert turns[0] == Turn(role="system", text=SYSTEM)
    assert len(turns) == 3


def test_a_question_gets_its_tasks_instruction():
    values = {"image": b"", "context": "how many?", "answers": ["2"]}
    assert said(sample(VQASample, **values)) == ("<image>\nhow many?", "2")
    asked, _ = said(sample(VQASample, "short_answer", **values))
    assert asked.endswith("how many?\nAnswer the question using a single word or phrase.")


def test_answers_are_drawn_by_weight():
    given = sample(
        VQASample, image=b"", context="?", answers=["a", "b", "c"], answer_weights=[6, 3, 0]
    )
    counts = Counter(said(given, seed)[1] for seed in range(900))
    assert counts["a"] == pytest.approx(600, abs=50)
    assert counts["a"] + counts["b"] == 900


def test_a_choice_is_answered_by_its_letter():
    given = sample(
        MultiChoiceVQASample, image=b"", context="?", choices=["x", "y"], correct_choice_idx=1
    )
    asked, answer = said(given)
    assert answer == "B"
    assert "A. x\nB. y\n" in asked


def test_boxes_are_written_in_thousandths_of_the_image():
    # By hand: 50/200 = 250, 20/100 = 200, (50 + 100)/200 = 750; beyond the edge is 999.
    words, boxes = ["STOP", "!"], [[50.0, 20.0, 100.0, 30.0], [-3.0, 99.0, 999.0, 9.0]]
    given = sample(
        OCRSample, "ocr_boxes", image=b"", text="STOP !", words_text=words, words_boxes=boxes
    )
    asked, answer = said(given)
    assert answer == (
        "<ref>STOP</ref><box>(250,200),(750,500)</box>\n<ref>!</ref><box>(0,990),(999,999)</box>"
    )
    assert asked.removeprefix("<image>\n") in PROMPTS["ocr_boxes"]
    assert boxes_text([], [], (1, 1)) == ""
    plain = sample(OCRSample, image=b"", text="STOP !", words_text=words, words_boxes=boxes)
    assert said(plain)[1] == "STOP !"


def test_a_type_that_cannot_be_trained_on_is_named():
    with pytest.raises(UserError, match="TextSample cannot be trained on"):
        said(sample(TextSample, text="x"))


PICTURES = [encoded_image("PNG", size=size) for size in ((96, 48), (48, 48), (144, 48))]
TURNS = [
    {"from": "human", "value": "<image> or <image>?"},
    {"from": "gpt", "value": "The first."},
    {"from": "human", "value": "And <image>?"},
    {"from": "gpt", "value": "Neither."},
]


def dialogue(images, turns):
    return sample(SimilarityInterleavedSample, images=images, texts=turns)


def params(**overrides):
    values = {
        "blend": {"x": 1.0},
        "sequence_length": 1000,
        "packing": False,
        "template": "chatml",
        "max_tiles": 6,
        "thumbnail": True,
        "tile_tags": True,
        "workers": 0,
        "shuffle_buffer": 1,
        "seed": 0,
    }
    return LoaderParams(**{**values, **overrides})


def fitted(encoder, images, turns):
    sizes = [Image.open(io.BytesIO(image)).size for image in images]
    rendered = conversation_of(dialogue(images, turns), np.random.default_rng(0), "chatml", None)
    return encoder._fitting("dialogues/1", sizes, rendered)[:2]


def test_images_share_one_numbering_and_lose_tiles_together(tokenizer, architecture):
    encoder = NVLMEncoder(params(), tokenizer, architecture)
    whole, tiling = fitted(encoder, PICTURES, TURNS)
    assert tiling.max_tiles == 6
    assert (whole.visual_index >= 0).sum() == 4 * (3 + 1 + 4)
    lengths: dict[int, int] = {}
    for length in range(len(whole), 200, -1):
        encoder = NVLMEncoder(params(sequence_length=length), tokenizer, architecture)
        try:
            encoded, tiling = fitted(encoder, PICTURES, TURNS)
        except Exception:
            break
        assert len(encoded) <= length
        lengths.setdefault(tiling.max_tiles, (encoded.visual_index >= 0).sum() // 4)
    # 3:1 with two tiles at most becomes 2:1; with one tile each image is a thumbnail.
    assert lengths == {6: 8, 2: 7, 1: 3}


@pytest.mark.parametrize("packing", [True, False])
def test_stored_dialogues_arrive_whole(packing, tokenizer, architecture, tmp_path):
    """Dialogues about three images and about none, through shards, Energon and packing."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for number, picture in enumerate(PICTURES):
        (raw / f"{number}.png").write_bytes(picture)
    names = [f"{number}.png" for number in range(3)]
    text_only = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [{"image": names, "turns": TURNS}, {"turns": text_only}] * 5
    (raw / "rows.json").write_text(json.dumps(rows))
    layout = Layout(
        kind="dialogue", annotations=["rows.json"], image="image", fields={"turns": "turns"}
    )
    given = DatasetParams(
        source="published",
        layout=layout,
        requires=str(raw),
        samples=None,
        samples_per_shard=5,
        max_skipped=0.0,
    )
    prepare_dataset(given, tmp_path / "sft" / "x", tmp_path / "metrics.json")
    loader = build_loader(
        tmp_path / "sft",
        params(packing=packing),
        tokenizer=tokenizer,
        architecture=architecture,
        rows=4,
        rank=0,
        world=1,
    )
    batch = next(iter(loader))
    expected = np.concatenate(
        [
            tile_image(Image.open(io.BytesIO(image)), 48, Tiling(max_tiles=6, thumbnail=True))
            for image in PICTURES
        ]
    )
    whole = int((batch.tiles_per_row // 8).sum())
    assert batch.tiles.shape == (8 * whole, 3, 48, 48)
    for tiles in batch.tiles.numpy().reshape(whole, 8, 3, 48, 48):
        assert (tiles == expected.transpose(0, 3, 1, 2)).all()
    text_only_samples = 0
    for row in range(4):
        for segment in range(1, int(batch.segment_ids[row].max()) + 1):
            where = batch.segment_ids[row] == segment
            visual = int((batch.visual_index[row][where] >= 0).sum())
            assert visual in (0, 32)
            text = tokenizer.decode(batch.input_ids[row][where & (batch.visual_index[row] < 0)])
            assert ("Neither." if visual else "Hello") in text
            text_only_samples += visual == 0
    assert text_only_samples > 0


def test_images_of_each_type():
    assert images_of(caption()) == [b""]
    assert images_of(dialogue([], TURNS)) == []
    assert images_of(dialogue(PICTURES, TURNS)) == PICTURES
