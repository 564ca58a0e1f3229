"""What loses tiles or is left out is counted, against the lengths of the samples read whole."""

import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from tests.data.loading.test_loader import PARAMS

from nvlm.data.loading.blend import find_blend
from nvlm.data.loading.inspection import inspect
from nvlm.data.loading.inspection_report import report_text
from nvlm.data.loading.loader import build_loader
from nvlm.data.loading.tally import Tally

pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLES = 60  # of each dataset


@pytest.fixture(scope="module")
def build(datasets, tokenizer, architecture):
    def build(root=datasets, rows=1, **overrides):
        return build_loader(
            root,
            replace(PARAMS, packing=False, shuffle_buffer=1, **overrides),
            tokenizer=tokenizer,
            architecture=architecture,
            rows=rows,
            rank=0,
            world=1,
        )

    return build


@pytest.fixture(scope="module")
def whole(build):
    """Tokens of each sample with all its tiles, by key, of two datasets."""
    return {
        name: {
            batch.keys[0][0]: batch.lengths[0]
            for batch in islice(build(blend={name: 1.0}), SAMPLES)
        }
        for name in ("strips", "choices")
    }


def tallied(loader, samples):
    """The tally of the stream until ``samples`` samples have come by or been left out."""
    tally, shortfalls = Tally(), []
    for batch in loader:
        tally.add(batch)
        shortfalls += batch.shortfalls
        if tally.read() >= samples:
            return tally, shortfalls


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_lose_tiles(build, whole, workers):
    lengths = whole["strips"]
    assert len(lengths) == SAMPLES
    length = int(np.median(list(lengths.values())))
    longer = {key: tokens for key, tokens in lengths.items() if tokens > length}
    loader = build(blend={"strips": 1.0}, sequence_length=length, workers=workers)
    tally, shortfalls = tallied(loader, SAMPLES)
    assert {entry.key: entry.tokens for entry in shortfalls} == longer
    assert tally.count("fewer tiles") == tally.count("fewer tiles", "strips") == len(longer) > 10
    assert (tally.read(), tally.left_out()) == (SAMPLES, 0)
    assert tally.length_for_all == max(lengths.values())
    assert tally.shares() == {"lost_tiles": len(longer) / SAMPLES, "left_out": 0}
    # What the tally advises is the least that helps.
    for advised, lost in ((tally.length_for_all, False), (tally.length_for_all - 1, True)):
        again, _ = tallied(build(blend={"strips": 1.0}, sequence_length=advised), SAMPLES)
        assert bool(again.sentence(advised)) == lost


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_are_left_out_come_with_the_next_one(build, whole, workers):
    lengths = whole["choices"]
    length = int(np.median(list(lengths.values())))
    longer = {key for key, tokens in lengths.items() if tokens > length}
    loader = build(blend={"choices": 1.0}, sequence_length=length, workers=workers)
    tally, shortfalls = tallied(loader, 3 * SAMPLES)
    assert {entry.key for entry in shortfalls} == longer
    assert tally.count("too long") == tally.left_out("choices") == len(shortfalls)
    assert tally.kept["choices"] + len(shortfalls) == tally.read()
    # Every epoch has as many of them; the stream may end within one.
    assert Counter(entry.key for entry in shortfalls).most_common()[0][1] <= 4
    assert tally.left_out() / tally.read() == pytest.approx(len(longer) / SAMPLES, abs=0.1)


def test_an_image_that_cannot_be_decoded(build, datasets, tmp_path):
    shutil.copytree(datasets / "captions", tmp_path / "captions")
    shard = tmp_path / "captions" / "shard-000000.tar"
    with tarfile.open(shard) as tar:
        (member,) = (entry for entry in tar if entry.name == "000000007.png")
    data = bytearray(shard.read_bytes())
    data[member.offset_data : member.offset_data + member.size] = bytes(member.size)
    shard.write_bytes(data)
    tally, shortfalls = tallied(build(root=tmp_path, blend={"captions": 1.0}), SAMPLES)
    assert {(entry.key, entry.kind) for entry in shortfalls} == {
        ("captions/000000007", "unreadable")
    }
    assert tally.length_for_all == 0
    told = tally.sentence(700)
    assert "0 of 60 samples lost tiles, 1 were left out (0 too long, 1 unreadable)" in told
    assert told.endswith("such as captions/000000007")


def test_the_report(build, datasets, whole, tokenizer):
    length = int(np.median(list(whole["strips"].values())))
    params = replace(PARAMS, packing=False, sequence_length=length)
    blend, pages = find_blend(datasets, PARAMS.blend), []
    for _ in range(2):
        loader = build(rows=4, sequence_length=length)
        statistics, _ = inspect(loader, 20, tokens_per_tile=4, shown=1)
        pages.append(report_text("sft_9b", statistics, params, blend, tokenizer))
    page, tally = pages[0], statistics.tally
    assert page == pages[1]
    assert "# What sft_9b reads" in page
    assert f"data.sequence_length {tally.length_for_all:,} in place of {length:,}" in page
    lost, read = tally.count("fewer tiles", "strips"), tally.read("strips")
    assert lost > 5
    assert f"| strips | 2 | 50.0% | {read} | {lost} | 0 | 0 | {tally.longest['strips']} |" in page
    assert f"| captions | 1 | 25.0% | {tally.read('captions')} | 0 | 0 | 0 |  |" in page


def test_questions_without_an_instruction_are_told_of(build, datasets, tokenizer):
    """The packaged questions hold their instruction in the text; a record's own may hold none."""
    blend = find_blend(datasets, PARAMS.blend)
    statistics, _ = inspect(build(rows=4), 10, tokens_per_tile=4, shown=1)
    assert "**Asked without" not in report_text("x", statistics, PARAMS, blend, tokenizer)
    bare = {"strips": tokenizer("user\nwhich digits?").input_ids}
    statistics.prompts.update(bare)
    page = report_text("x", statistics, PARAMS, blend, tokenizer)
    assert page.count("**Asked without") == 1
    assert "- strips: `user\\nwhich digits?`\n  **Asked without" in page
