"""The proof that nothing held out reaches a training stage, by index, by pixels, and by effect.

It goes over all the records that conf/data/smoke.yaml asks for.
"""

import hashlib
import io
import json
import tarfile
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import load_digits

from nvlm.data.benchmarks.evaluation import EvaluationParams, prepare_evaluation
from nvlm.data.packaged import digits, easy_vqa
from nvlm.data.packaged.composed import PACKAGED
from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.streams import records
from nvlm.params import parse_params

SMOKE: Any = OmegaConf.load("conf/data/smoke.yaml")
TRAINING = [
    (group, name)
    for group in ("pretrain", "sft")
    for name in SMOKE[group]
    if SMOKE[group][name].source in PACKAGED
]


def params(group, name):
    return parse_params(SMOKE[group][name], DatasetParams, f"data.{group}.{name}")


def stream(group, name):
    return records(params(group, name))


def pixels(data):
    """Digest of an image's RGB pixels, however it is encoded."""
    with Image.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB")
        return hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).digest()


@pytest.fixture(scope="module")
def held_out_pixels(tmp_path_factory):
    """All test pictures of easy-VQA, all held-out scans, and every image of the evaluation sets."""
    root = tmp_path_factory.mktemp("eval")
    found = {pixels(path.read_bytes()) for path in easy_vqa.image_paths("test").values()}
    for task, values in SMOKE.eval.items():
        if values.source != "packaged":
            continue
        params = parse_params(values, EvaluationParams, task)
        prepare_evaluation(task, params, root / task, list)  # nothing official is read
        images = list((root / task / "images").iterdir())
        assert images
        found |= {pixels(path.read_bytes()) for path in images}
    return found


@pytest.mark.parametrize(("group", "name"), TRAINING)
def test_no_held_out_picture_is_in_training(group, name, held_out_pixels):
    seen = 0
    for record in stream(group, name):
        origin = record.provenance
        assert origin.split == "train"
        assert origin.indices
        if origin.source == "digits":
            assert all(index % 5 != 4 for index in origin.indices)
        else:
            published = easy_vqa.image_paths("train")[origin.indices[0]].read_bytes()
            assert record.image == published
        assert pixels(record.image) not in held_out_pixels
        seen += 1
    assert seen == SMOKE[group][name].samples


@pytest.mark.parametrize("source", PACKAGED)
def test_held_out_data_have_no_effect_on_training(source, monkeypatch):
    """The records stay the same to the bit when whatever is held out cannot be opened."""
    given = DatasetParams(
        source=source, requires="", samples=200, samples_per_shard=100, max_skipped=0.0, seed=7
    )
    before = list(records(given))

    published = digits.scans("train")

    def scans(split):
        assert split == "train", "a training source asked for held-out scans"
        return published

    def refuse(original):
        def guarded(split, *arguments):
            assert split == "train", "a training source asked for held-out pictures"
            return original(split, *arguments)

        return guarded

    monkeypatch.setattr(digits, "scans", scans)
    for name in ("questions", "image_paths", "image", "descriptions"):
        monkeypatch.setattr(easy_vqa, name, refuse(getattr(easy_vqa, name)))
    assert list(records(given)) == before


def test_scans_are_split_by_index_before_use():
    published = load_digits().images.astype(np.uint8)
    train, test = digits.scans("train"), digits.scans("test")
    assert sorted([*train.indices, *test.indices]) == list(range(1797))
    assert set(test.indices) == set(range(4, 1797, 5))
    for part in (train, test):
        assert (part.images == published[part.indices]).all()
    # No scan occurs twice, so that the index alone tells them apart.
    assert len({scan.tobytes() for scan in published}) == 1797


def test_easy_vqa_keeps_its_own_split():
    train, test = easy_vqa.image_paths("train"), easy_vqa.image_paths("test")
    assert (len(train), len(test)) == (4000, 1000)
    assert len(easy_vqa.questions("train")) == 38_575
    assert len(easy_vqa.questions("test")) == 9_673
    train_pixels = {pixels(path.read_bytes()) for path in train.values()}
    assert len(train_pixels) == 4000
    assert not train_pixels & {pixels(path.read_bytes()) for path in test.values()}


def test_stored_samples_tell_where_they_come_from(datasets):
    origins = []
    for shard in (datasets / "choices").glob("*.tar"):
        with tarfile.open(shard) as tar:
            for name in tar.getnames():
                file = tar.extractfile(name)
                if file is not None and name.endswith(".json"):
                    origins.append(json.load(file)["provenance"])
    assert len(origins) == 60
    assert {origin["source"] for origin in origins} == {"digits", "easy_vqa"}
    assert all(origin["split"] == "train" and origin["indices"] for origin in origins)
