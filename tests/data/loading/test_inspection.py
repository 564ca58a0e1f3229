"""The look at a blend: numbers by hand, pictures that are the same twice, a blend for Megatron."""

import hashlib

import pytest
from megatron.energon import WorkerConfig, get_loader, get_train_dataset
from PIL import Image
from tests.data.loading.test_batch import FIRST, TEXT_ONLY

from nvlm.data.loading.batch import collate
from nvlm.data.loading.blend import find_blend
from nvlm.data.loading.inspection import draw_contact_sheet, draw_histograms, inspect, samples_of
from nvlm.data.loading.loader import build_loader
from nvlm.data.loading.params import LoaderParams

pytestmark = pytest.mark.filterwarnings("ignore")

PARAMS = LoaderParams(
    blend={"captions": 1.0, "strips": 3.0},
    sequence_length=700,
    packing=True,
    template="chatml",
    max_tiles=6,
    thumbnail=True,
    tile_tags=True,
    workers=0,
    shuffle_buffer=20,
    seed=5,
)


def test_samples_are_taken_apart():
    batch = collate([[FIRST, TEXT_ONLY], [TEXT_ONLY, FIRST]], 8)
    samples = list(samples_of(batch, tokens_per_tile=2))
    assert [sample.tokens for sample in samples] == [4, 2, 2, 4]
    assert [len(sample.tiles) for sample in samples] == [1, 0, 0, 1]
    assert [sample.answer_ids for sample in samples] == [[6], [9], [9], [6]]
    assert [sample.prompt_ids for sample in samples] == [[5], [9], [9], [5]]
    assert samples[3].tiles[0, 0, 0, 0] == 10


def test_plots_of_a_blend(datasets, tokenizer, architecture, tmp_path):
    for name in ("first", "second"):
        loader = build_loader(
            datasets,
            PARAMS,
            tokenizer=tokenizer,
            architecture=architecture,
            rows=4,
            rank=0,
            world=1,
        )
        statistics, samples = inspect(loader, 5, tokens_per_tile=4, shown=6)
        assert len(samples) == 6
        assert len(statistics.padding) == 20
        assert sum(statistics.tokens) == pytest.approx(20 * 700 - 700 * sum(statistics.padding))
        draw_histograms(statistics, tmp_path / name / "histograms.png")
        draw_contact_sheet(samples, tokenizer, "qwen2", tmp_path / name / "samples.png")
    for name in ("histograms.png", "samples.png"):
        first, second = (tmp_path / way / name for way in ("first", "second"))
        assert hashlib.md5(first.read_bytes()).digest() == hashlib.md5(second.read_bytes()).digest()
        with Image.open(first) as image:
            assert len(image.getcolors(maxcolors=10**6) or []) > 10


def test_energon_reads_the_blend(datasets, tmp_path):
    path = tmp_path / "blends" / "sft.yaml"
    path.parent.mkdir()
    path.write_text(find_blend(datasets, PARAMS.blend).metadataset(path.parent))
    assert str(tmp_path) not in path.read_text()
    dataset = get_train_dataset(
        path,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
    )
    kinds = [
        type(sample).__name__ for sample, _ in zip(get_loader(dataset), range(200), strict=False)
    ]
    assert kinds.count("VQASample") == pytest.approx(150, abs=25)
    assert set(kinds) == {"VQASample", "CaptioningSample"}
