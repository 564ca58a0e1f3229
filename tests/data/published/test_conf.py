"""The full scale's sources, layouts and datasets, held against each other."""

import json
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import pytest
from omegaconf import OmegaConf
from tests.data.published.layout import Published
from tests.data.published.test_layouts import DATASETS

from nvlm.data.benchmarks.evaluation import EvaluationParams
from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.streams import records
from nvlm.fetch.sources import Source
from nvlm.params import composed, parse_params

DATA = OmegaConf.create(composed(["scale=full"])).data
SOURCES = {
    name: parse_params(values, Source, f"data.sources.{name}")
    for name, values in DATA.sources.items()
}
TRAINING = {**DATA.pretrain, **DATA.sft}
MISSING = {
    "rects",
    "sbu",
    "laion_115m",
    "rctw",
    "vqa_cd",
    "poie",
    "bentham_qa",
    "squad_rendering",
    "gsm8k_rendering",
    "metamathqa_rendering",
    "textbook",
}
FETCHED = sorted(TRAINING.keys() - MISSING)
PICTURES = (".jpg", ".png")
SHARED = ("interleaved", "img2dataset")  # layouts of several sets, each with files of its own names


def source_of(path):
    """The source whose manifest configuration names."""
    manifest = PurePosixPath(path)
    assert (manifest.parent.as_posix(), manifest.suffix) == ("data/raw", ".json")
    return SOURCES[manifest.stem]


def files_of(source):
    """Patterns of the files that are fetched, before any is unpacked."""
    hub = [pattern.replace("[", "[[]") for pattern in source.hub.files] if source.hub else []
    github = source.github.files if source.github else []
    return [*hub, *github, *(file.name for file in source.web)]


def brings(source, name):
    """Whether a file ``name`` can lie in the directory of ``source``."""
    archives = [
        archive
        for pattern, archive in source.unpack.items()
        if any(
            fnmatchcase(file, pattern) or fnmatchcase(pattern, file) for file in files_of(source)
        )
    ]
    assert len(archives) == len(source.unpack)  # none is about a file that is never fetched
    kept = [file for file in files_of(source) if file not in source.unpack]
    if any(fnmatchcase(name, pattern) for pattern in kept):
        return True
    for archive in archives:
        member = PurePosixPath(name)
        if archive.into != ".":
            if not member.is_relative_to(archive.into):
                continue
            member = member.relative_to(archive.into)
        if any(fnmatchcase(member.as_posix(), pattern) for pattern in archive.members):
            return True
    return False


def fixture(name):
    """Files of the dataset ``name`` as its source brings them, and what is to be read from them."""
    layouts = OmegaConf.load("conf/data/layouts.yaml").layouts
    (layout,) = {key for key in layouts if layouts[key] == DATA_LAYOUTS[name]} & DATASETS.keys()
    published = DATASETS[layout]
    if layout not in SHARED:
        return published
    (content,) = published.files.values()
    patterns = source_of(TRAINING[name].requires).hub.files
    files = {pattern.replace("*", "train-00000-of-00001-ab"): content for pattern in patterns}
    return Published(files, published.contents * len(files), published.images * len(files))


DATA_LAYOUTS = {name: TRAINING[name].layout for name in FETCHED}


def test_every_set_of_the_paper_is_fetched_or_says_why_not():
    assert len(TRAINING) == 103
    assert len(FETCHED) == 92
    for name, values in TRAINING.items():
        source = source_of(values.requires)
        assert bool(source.unavailable) == (name in MISSING), name
        assert values.source == "published" or source.unavailable, name
        assert not source_of(values.images).unavailable or name in MISSING
    assert len(DATA.eval) == 15
    for values in DATA.eval.values():
        parse_params(values, EvaluationParams, "data.eval")
        assert not source_of(values.requires).unavailable
        assert not source_of(values.images).unavailable
    used = {
        PurePosixPath(values[key]).stem
        for values in (*TRAINING.values(), *DATA.eval.values())
        for key in ("requires", "images")
    }
    assert used == SOURCES.keys()


@pytest.mark.parametrize("group", ["pretrain", "sft"])
def test_every_set_has_its_share_of_the_blend(group):
    assert len(DATA[group]) == {"pretrain": 18, "sft": 97}[group]
    assert DATA.blends[group].keys() == DATA[group].keys()
    for name, values in DATA[group].items():
        parse_params(values, DatasetParams, f"data.{group}.{name}")


@pytest.mark.parametrize("name", FETCHED)
def test_what_a_source_brings_is_what_the_layout_reads(name, tmp_path):
    values = TRAINING[name]
    for path in (values.requires, values.images):
        (tmp_path / path).with_suffix("").mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps({"source": name, "files": []}))
    published = PREPARED[name]
    for file, content in published.files.items():
        # A picture is looked for among the shared ones: "everything" is what some archives hold.
        places = [values.requires, values.images]
        for place in reversed(places) if file.endswith(PICTURES) else places:
            if brings(source_of(place), file):
                Published({file: content}, []).lay_out((tmp_path / place).with_suffix(""))
                break
    params = parse_params(values, DatasetParams, name)
    here = {key: str(tmp_path / getattr(params, key)) for key in ("requires", "images")}
    read = list(records(replace(params, **here)))
    assert [getattr(record, "content", record) for record in read] == published.contents
    if name != "pdfa_eng_wds":
        for record in read:
            assert [image.read() for image in record.images] or not record.images


PREPARED = {name: fixture(name) for name in FETCHED}


def test_the_stand_in_has_the_weight_of_what_it_stands_in_for():
    data = OmegaConf.create(composed(["scale=full", "stand_in=llava_pretrain"])).data
    assert data.fetch.missing == "skip"
    weights = data.blends.pretrain
    assert weights.llava_pretrain == pytest.approx(weights.laion_115m + weights.sbu)
    params = parse_params(data.pretrain.llava_pretrain, DatasetParams, "x")
    source = parse_params(data.sources.llava_pretrain, Source, "x")
    assert params.requires == params.images == "data/raw/llava_pretrain.json"
    assert all(brings(source, name) for name in DATASETS["llava_pretrain"].files)
    assert "llava_pretrain" not in DATA.sources


def test_a_patterns_bracket_stands_for_itself():
    source = SOURCES["geo170k_qa"]
    assert brings(source, "geo170k(qa)/train-0.parquet")
    assert not brings(source, "geo170k(align)/train-0.parquet")
