"""Evaluation pictures among training pictures: found, counted, and left out where asked."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.small import byte_tokenizer, small_architecture

import find_overlap as script
from nvlm.data.loading import encoder
from nvlm.data.loading.loader import build_loader
from nvlm.data.loading.params import LoaderParams
from nvlm.data.overlap import fingerprint
from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.prepare import prepare_dataset
from nvlm.errors import UserError


def scene(seed, size=(320, 240)):
    """A picture with structure: blurred noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image, form="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


PICTURES = {
    "same": encoded(scene(0), quality=90),
    "smaller": encoded(scene(1, (200, 150)), quality=60),
    "as_png": encoded(scene(2), "PNG"),
    "brighter": encoded(scene(3).point(lambda value: min(255, value + 12)), quality=80),
    "other": encoded(scene(10)),
    "another": encoded(scene(11)),
    "blank": encoded(Image.new("RGB", (320, 240), "white")),
}
SHOWN = {"same", "smaller", "as_png", "brighter"}


@pytest.fixture
def project(tmp_path, monkeypatch, directory_of_records):
    monkeypatch.chdir(tmp_path)
    lines = [
        {"image": f"images/{name}", "question": "What?", "answers": ["A wall."]}
        for name in PICTURES
    ]
    raw = directory_of_records(lines, PICTURES)
    params = DatasetParams(
        source="records", requires=str(raw), samples=None, samples_per_shard=3, max_skipped=0.0
    )
    for group in ("pretrain", "sft"):
        prepare_dataset(params, tmp_path / "data" / group / "mine", tmp_path / "m.json")
    for task, seeds in {"VQAv2": (0, 1), "MMMU": (2, 3, 20)}.items():
        images = tmp_path / "data/eval" / task / "images"
        images.mkdir(parents=True)
        for seed in seeds:
            (images / f"{seed}.jpg").write_bytes(encoded(scene(seed), quality=90))
        (images / "blank.png").write_bytes(encoded(Image.new("L", (60, 60), 200), "PNG"))
    return tmp_path


def run(monkeypatch, *, leave_out):
    overlap = json.dumps({"distance": 16, "leave_out": leave_out})
    Path("params.yaml").write_text(f"data: {{overlap: {overlap}}}\n")
    outs = ["--metrics", "m.json", "--left-out", "data/left_out.json", "--report", "r.md"]
    monkeypatch.setattr("sys.argv", ["find_overlap.py", "--data", "data", *outs])
    monkeypatch.setattr(script, "overlap_workers", lambda: ThreadPoolExecutor(2))
    script.main()
    metrics, left_out = (json.loads(Path(name).read_text()) for name in ("m.json", outs[3]))
    return metrics, left_out, Path("r.md").read_text()


def loader_of(project):
    return build_loader(
        project / "data" / "sft",
        LoaderParams(
            blend={"mine": 1.0},
            sequence_length=300,
            packing=False,
            template="chatml",
            max_tiles=1,
            thumbnail=False,
            tile_tags=False,
            workers=0,
            shuffle_buffer=1,
            seed=0,
        ),
        tokenizer=byte_tokenizer(),
        architecture=small_architecture(),
        rows=1,
        rank=0,
        world=1,
    )


def test_pictures_are_found_whatever_their_size_and_format(project, monkeypatch):
    metrics, left_out, report = run(monkeypatch, leave_out=False)
    assert metrics["sft_mine"] == {"same_file": 1, "alike": 3}
    assert left_out == {}
    assert "| sft/mine | 7 | VQAv2 | 1 | 1 |" in report
    assert "| sft/mine | 7 | MMMU | 0 | 2 |" in report


def test_their_samples_are_left_out_where_asked(project, monkeypatch):
    _, left_out, _ = run(monkeypatch, leave_out=True)
    places = {name: f"{place:09d}" for place, name in enumerate(PICTURES)}
    assert left_out["sft/mine"] == sorted(places[name] for name in SHOWN)
    stream = iter(loader_of(project))
    read = {key for _ in range(12) for row in next(stream).keys for key in row}
    assert {key.rpartition("/")[2] for key in read} == {
        places[name] for name in PICTURES.keys() - SHOWN
    }


def test_a_dataset_of_nothing_but_evaluation_pictures_is_told(project, monkeypatch):
    every = {"sft/mine": [f"{place:09d}" for place in range(len(PICTURES))]}
    Path("data/left_out.json").write_text(json.dumps(every))
    monkeypatch.setattr(encoder, "MAX_CONSECUTIVE_EXCLUDED", 20)
    with pytest.raises(UserError, match="20 samples in a row, the last one mine/0"):
        next(iter(loader_of(project)))


def test_what_has_no_structure_has_no_fingerprint():
    assert fingerprint(PICTURES["blank"]) is None
    assert fingerprint(b"no picture") is None
