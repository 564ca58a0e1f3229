"""The stream that training reads: the same twice, complete, packed without mixing, restorable."""

import io
import json
import tarfile
from dataclasses import fields, replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from nvlm.data.loading.batch import Batch
from nvlm.data.loading.encoder import pack
from nvlm.data.loading.loader import build_loader
from nvlm.data.loading.params import LoaderParams
from nvlm.errors import UserError
from nvlm.model.prompts import DESCRIBE, SYSTEM, Turn
from nvlm.model.tiling import Tiling, tile_image
from nvlm.model.tokens import encode_conversation
from nvlm.params import parse_params

pytestmark = pytest.mark.filterwarnings("ignore")

BLEND = {"captions": 1.0, "strips": 2.0, "choices": 1.0}
PARAMS = LoaderParams(
    blend=BLEND,
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


@pytest.fixture(scope="module")
def build(datasets, tokenizer, architecture):
    def build(rank=0, world=1, rows=3, **overrides):
        return build_loader(
            datasets,
            replace(PARAMS, **overrides),
            tokenizer=tokenizer,
            architecture=architecture,
            rows=rows,
            rank=rank,
            world=world,
        )

    return build


def same(first: Batch, second: Batch) -> bool:
    told = first.keys == second.keys and first.lengths == second.lengths
    return told and all(
        torch.equal(getattr(first, field.name), getattr(second, field.name))
        for field in fields(Batch)
        if field.name not in ("keys", "lengths", "shortfalls")
    )


def split_samples(batch: Batch, architecture):
    """The samples of a batch, taken apart by segment: (ids, labels, visual, positions, tiles)."""
    per_tile = architecture.vision.tokens_per_tile
    first_tile = 0
    for row in range(len(batch.input_ids)):
        segments = batch.segment_ids[row]
        for segment in range(1, int(segments.max()) + 1):
            where = segments == segment
            visual = batch.visual_index[row][where]
            seen = visual[visual >= 0]
            tiles = range(int(seen.min()) // per_tile, int(seen.max()) // per_tile + 1)
            yield (
                batch.input_ids[row][where],
                batch.labels[row][where],
                torch.where(visual >= 0, visual - seen.min(), -1),
                batch.position_ids[row][where],
                batch.tiles[[first_tile + tile for tile in tiles]],
            )
        first_tile += int(batch.tiles_per_row[row])


def test_the_same_stream_twice(build):
    first, second = build(), build()
    assert all(same(*pair) for pair in islice(zip(first, second, strict=False), 8))
    other = build(seed=6)
    assert not same(next(iter(build())), next(iter(other)))


def test_a_worker_process_reads_the_same_stream(build):
    assert all(same(*pair) for pair in islice(zip(build(workers=1), build(), strict=False), 4))


def test_packed_samples_are_whole_and_apart(build, architecture):
    several = 0
    for batch in islice(build(), 6):
        assert batch.input_ids.shape == (3, 700)
        padding = batch.segment_ids == 0
        assert (batch.labels[padding] == -100).all()
        assert (batch.visual_index[padding] == -1).all()
        for segments in batch.segment_ids:
            used = segments[segments > 0]
            assert (used.diff() >= 0).all()  # no sample in two pieces
            assert (segments[len(used) :] == 0).all()  # padding only at the end
            several += int(segments.max()) > 1
        for ids, labels, visual, positions, tiles in split_samples(batch, architecture):
            assert positions.tolist() == list(range(len(ids)))
            assert labels[-1] == -100  # nothing is predicted across the border
            trained = labels >= 0
            assert labels[trained].tolist() == ids[1:][trained[:-1]].tolist()
            assert not (visual[1:][trained[:-1]] >= 0).any()
            assert visual[visual >= 0].tolist() == list(range(4 * len(tiles)))
    assert several > 6


def arriving(loader, batches, architecture):
    """What ``loader`` yields in ``batches`` batches: a set of (ids, tiles)."""
    return {
        (tuple(ids.tolist()), tiles.numpy().tobytes())
        for batch in islice(loader, batches)
        for ids, _, _, _, tiles in split_samples(batch, architecture)
    }


def test_packing_drops_nothing(build, architecture):
    packed = arriving(build(blend={"strips": 1.0}), 60, architecture)
    alone = arriving(build(blend={"strips": 1.0}, packing=False), 60, architecture)
    assert len(packed) == 60
    assert packed == alone


def test_samples_are_what_was_stored(build, datasets, tokenizer, architecture):
    expected = set()
    for shard in sorted((datasets / "captions").glob("*.tar")):
        with tarfile.open(shard) as tar:
            parts = {name: tar.extractfile(name).read() for name in tar.getnames()}
        for name in (name for name in parts if name.endswith(".json")):
            encoded = encode_conversation(
                [
                    Turn(role="system", text=SYSTEM),
                    Turn(role="user", text=f"<image>\n{DESCRIBE}"),
                    Turn(role="assistant", text=json.loads(parts[name])["caption"]),
                ],
                tokenizer,
                template="chatml",
                family="qwen2",
                tiles_per_image=[1],
                tokens_per_tile=4,
                tile_tags=True,
            )
            image = Image.open(io.BytesIO(parts[name.replace(".json", ".png")]))
            tiles = tile_image(image, 48, Tiling(max_tiles=6, thumbnail=True))
            expected.add((tuple(encoded.input_ids), tiles.transpose(0, 3, 1, 2).tobytes()))
    assert len(expected) == 60
    assert arriving(build(blend={"captions": 1.0}), 40, architecture) == expected


def test_weights_are_kept(build):
    # Strips alone have several tiles: at weight 2 of 4 they are half of the samples.
    loader = build(packing=False, rows=50)
    counts = torch.cat([batch.tiles_per_row for batch in islice(loader, 8)])
    assert (counts > 1).float().mean() == pytest.approx(0.5, abs=0.08)


def test_ranks_share_out_the_samples(build, architecture):
    streams = [
        {
            tiles.numpy().tobytes()
            for batch in islice(build(rank, 2, blend={"choices": 1.0}), 20)
            for *_, tiles in split_samples(batch, architecture)
        }
        for rank in range(2)
    ]
    assert min(len(stream) for stream in streams) >= 25
    assert not streams[0] & streams[1]


def test_plain_template_has_no_system_turn(build, tokenizer):
    batch = next(iter(build(template="plain", max_tiles=1, thumbnail=False, tile_tags=False)))
    assert batch.tiles_per_row.sum() == batch.segment_ids.max(1).values.sum()
    text = tokenizer.decode(batch.input_ids[0][batch.visual_index[0] < 0])
    assert text.startswith("<Image></Image>")
    assert SYSTEM not in text


def test_long_samples_get_fewer_tiles_and_are_never_cut(build, architecture):
    strips = {"blend": {"strips": 1.0}, "packing": False}
    every = arriving(build(**strips), 60, architecture)
    length = int(np.median([len(ids) for ids, _ in every]))
    short = arriving(build(**strips, sequence_length=length), 60, architecture)
    kept = {(ids, tiles) for ids, tiles in every if len(ids) <= length}
    assert kept <= short
    assert len(short) == 60 > len(kept)
    tile = 3 * 48 * 48
    assert {len(tiles) // tile for _, tiles in short - kept} <= {1, 3, 4}
    assert all(len(ids) <= length for ids, _ in short)


def test_samples_too_long_with_one_tile_are_skipped(build, architecture):
    choices = {"blend": {"choices": 1.0}, "packing": False}
    every = arriving(build(**choices), 60, architecture)
    length = int(np.median([len(ids) for ids, _ in every]))
    short = arriving(build(**choices, sequence_length=length), 60, architecture)
    assert short == {(ids, tiles) for ids, tiles in every if len(ids) <= length}
    assert 20 < len(short) < 50


def test_a_length_that_fits_nothing_is_an_error(build):
    with pytest.raises(UserError, match="sequence_length = 50 is too short"):
        next(iter(build(sequence_length=50)))


def test_an_unknown_dataset_is_named(build):
    with pytest.raises(UserError, match=r"blend\.laion.*captions, choices, strips"):
        build(blend={"laion": 1.0})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"blend": {}}, "blend: at least one"),
        ({"blend": {"a": 0.0}}, "blend: at least one"),
        ({"template": "alpaca"}, "template: 'alpaca' should be one of"),
        ({"max_tiles": 0}, "max_tiles: at least 1"),
        ({"workers": -1}, "workers"),
        ({"sequence_length": "long"}, "sequence_length"),
    ],
)
def test_bad_params(overrides, words):
    values = {field.name: getattr(PARAMS, field.name) for field in fields(LoaderParams)}
    with pytest.raises(UserError, match=words):
        parse_params({**values, **overrides}, LoaderParams, "train.x.data")


def test_packing_by_hand():
    # 5 opens a row; 4 and 3 share the next; 2 fits behind 5. Order of arrival within and between.
    assert pack(["five", "three", "four", "two"], [5, 3, 4, 2], 7) == [
        ["five", "two"],
        ["three", "four"],
    ]


def test_packing_keeps_all_and_overfills_nothing():
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 101, size=64).tolist()
        rows = pack(range(64), lengths, 100)
        assert sorted(index for row in rows for index in row) == list(range(64))
        loads = [sum(lengths[index] for index in row) for row in rows]
        assert max(loads) <= 100
        # Any two rows together exceed the capacity, or packing would have merged them.
        assert len(loads) == 1 or sum(sorted(loads)[:2]) > 100
