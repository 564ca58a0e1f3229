"""Which stages a change reruns: a table, held against what DVC really runs.

DVC runs the real graph, with its real dependencies, on real changes of conf/; only the commands
are replaced by one that writes a digest of what the stage depends on.
"""

import json
import os
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from tests.pipeline.affected import (
    BRANCHES,
    after_combining,
    after_converting,
    after_pretraining,
    after_releasing,
    after_sft,
    inspected,
    scored,
    without_others,
)

from nvlm.params import composed

STUB = """
import hashlib, json, pathlib, sys
outs, deps, keys, shown = parts = [], [], [], []
for argument in sys.argv[1:]:
    if argument == "+":
        parts = parts[1:]
    else:
        parts[0].append(argument)
digest = hashlib.sha256()
for dep in deps:
    path = pathlib.Path(dep)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.read_bytes())
for key in keys:
    value = json.loads(pathlib.Path("params.json").read_text())
    for name in key.split("."):
        value = value[name]
    digest.update(repr(value).encode())
for out in map(pathlib.Path, outs):
    file = out if out.suffix else out / "checkpoint.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(digest.hexdigest())
"""

BASE = without_others()
# Override of a parameter, and the stages that it reruns.
AFFECTED = [
    ("environment.memory_gib=3", {"environment"}),
    ("train.sft_72b.lr=5e-4", after_sft("72b")),
    ("train.sft_34b.steps=7", after_sft("34b")),
    ("train.pretrain_34b.clip_grad=1", after_pretraining("34b")),
    (
        "data.blends.pretrain.digit_text=0.25",
        inspected("pretrain", *BRANCHES) | after_pretraining("34b") | after_pretraining("72b"),
    ),
    (
        "data.blends.sft.easy_vqa=0.5",
        inspected("sft", *BRANCHES) | after_sft("34b") | after_sft("72b"),
    ),
    (
        "train.sft_72b.grid.pipeline=4",
        {"split_pp_72b"} | after_sft("72b"),
    ),
    (
        "data.pretrain.digit_text.samples=100",
        {"prepare_pretrain@digit_text", "find_overlap"}
        | inspected("pretrain", *BRANCHES)
        | after_pretraining("34b")
        | after_pretraining("72b"),
    ),
    (
        "data.sft.easy_vqa.seed=99",
        {"prepare_sft@easy_vqa", "find_overlap"}
        | inspected("sft", *BRANCHES)
        | after_sft("34b")
        | after_sft("72b"),
    ),
    (
        "data.eval.VQAv2.limit=10",
        {"prepare_eval@VQAv2", "find_overlap"} | scored(*BRANCHES, tasks=["VQAv2"]),
    ),
    (
        "eval.tasks.VQAv2.ask.max_new_tokens=3",
        {"environment"} | scored(*BRANCHES, tasks=["VQAv2"]),
    ),
    (
        "eval.tasks.MMMU.metric=vqa",
        {"environment"} | scored(*BRANCHES, tasks=["MMMU"], verbs=["score"]),
    ),
    ("data.overlap.distance=9", {"find_overlap"}),
    ("model.projector.seed=5", after_combining("34b") | after_combining("72b")),
    ("model.lm_72b.make_vocabulary_divisible_by=64", after_converting("lm_72b")),
    ("model.release=megatron", after_releasing()),
    ("model.releases.megatron.source.revision=other", set()),
    ("model.vision.revision=other", {"download_vision", "licences"} | after_converting("vision")),
    (
        "standin.lm_34b.training.seed=9",
        {"standin_lm_34b", "download_lm_34b", "licences"} | after_converting("lm_34b"),
    ),
]

# A line that is added to a file, and the stages that it reruns; test_code.py has more.
EDITED = [
    ("src/nvlm/train/trainer.py: # says more", {"code"}),
    ("src/nvlm/evaluate/metrics/vqa.py: LEFT = 1", {"code"} | scored(*BRANCHES, verbs=["score"])),
]
CHANGES = [None, *(change for change, _ in AFFECTED + EDITED)]


@pytest.fixture(scope="module")
def affected(tmp_path_factory):
    """What DVC runs for each change of the tables, in copies of a graph that was reproduced once.

    Two at a time: most of it is DVC reading and writing dvc.lock.
    """
    root = tmp_path_factory.mktemp("graph") / "reproduced"
    stub_graph(root)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        assert len(pool.submit(reproduce, root, None).result()) > 40
        copies = {change: root.with_name(str(place)) for place, change in enumerate(CHANGES)}
        for copy in copies.values():
            shutil.copytree(root, copy)
        yield {change: pool.submit(reproduce, copy, change) for change, copy in copies.items()}
        pool.shutdown(cancel_futures=True)


def stub_graph(root):
    """A copy of the project whose commands are stubs."""
    for name in ("conf", "src", "stages"):
        shutil.copytree(name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    stages = yaml.safe_load(Path("dvc.yaml").read_text())
    for stage in stages["stages"].values():
        block = stage.get("do", stage)
        block["cmd"] = stub_command(block)
    (root / "dvc.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
    (root / "stub.py").write_text(STUB)
    Repo.init(str(root), no_scm=True).close()


def reproduce(root, change):
    """The stages that DVC runs in ``root`` after ``change``: an override, or FILE: LINE."""
    os.chdir(root)
    file, _, line = (change or "").partition(": ")
    if line:
        with Path(file).open("a") as edited:
            edited.write(line + "\n")
    text = composed([*BASE, *([change] if change and not line else [])])
    Path("params.yaml").write_text(text)
    Path("params.json").write_text(json.dumps(yaml.safe_load(text)))
    with Repo() as repo:
        return {stage.addressing for stage in repo.reproduce()}


def stub_command(block):
    if "environment.py" in block["cmd"] or "list_code.py" in block["cmd"]:
        return block["cmd"]  # their outputs do not depend on all that they read
    outs = [
        next(iter(out)) if isinstance(out, dict) else out
        for out in [*block.get("outs", []), *block.get("metrics", [])]
    ]
    if "find_overlap.py" in block["cmd"]:  # nothing is left out, whatever it finds
        return " ".join(["python -S stub.py", *outs, "+", "+", "+"])
    keys = block.get("params", [])
    # What a stage reads of its own command line is part of it too.
    numbers = re.findall(r"\$\{(train[^}]*)\}", block["cmd"])
    shown = [f"${{{number}}}" for number in numbers]
    words = ["python -S stub.py", *outs, "+", *block["deps"], "+", *keys, *numbers, "+", *shown]
    return " ".join(words)


def test_nothing_changed_runs_nothing(affected):
    assert affected[None].result() == set()


@pytest.mark.parametrize(("override", "expected"), AFFECTED, ids=[row[0] for row in AFFECTED])
def test_a_parameter_reruns_what_depends_on_it_and_nothing_else(affected, override, expected):
    assert affected[override].result() == expected


@pytest.mark.parametrize(("edit", "expected"), EDITED, ids=[row[0] for row in EDITED])
def test_an_edit_reruns_what_it_can_change_and_nothing_else(affected, edit, expected):
    assert affected[edit].result() == expected
