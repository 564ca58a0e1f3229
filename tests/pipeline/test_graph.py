"""The whole graph, really run at smoke scale: what it learns, and that running it again is free.

It runs where the tests run. After `make repro` nothing is left to do, and this takes seconds.
"""

import csv
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from nvlm.params import composed

pytestmark = pytest.mark.pipeline

BRANCHES = ("34b", "72b")
TASKS = ("captioning", "TextVQA", "VQAv2", "MMMU")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["dvc", *arguments], capture_output=True, text=True, check=False)


def dvc(*arguments: str) -> str:
    """Run dvc; its output."""
    done = run(*arguments)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def reproduced():
    dvc("repro")


def scores(branch, variant, task):
    return json.loads(Path("reports/scores", branch, variant, f"{task}.json").read_text())


@pytest.mark.parametrize("branch", BRANCHES)
def test_held_out_questions_are_answered(branch):
    assert scores(branch, "sft", "VQAv2")["score"] >= 0.70
    assert scores(branch, "sft", "TextVQA")["score"] >= 0.50


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("task", TASKS)
def test_every_score_beats_the_best_constant_and_the_pretrained_model(branch, task):
    tuned, pretrained = scores(branch, "sft", task), scores(branch, "pretrained", task)
    assert tuned["score"] > tuned["majority"]
    assert tuned["score"] > pretrained["score"]
    assert tuned["samples"] == pretrained["samples"] > 100
    assert 0 <= tuned["unparsable"] <= tuned["samples"]
    assert Path("plots", branch, "sft", f"{task}.png").stat().st_size > 10_000


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_losses_fall(branch, stage):
    with Path("plots", branch, f"{stage}.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    quarter = len(losses) // 4
    assert sum(losses[-quarter:]) < sum(losses[:quarter])


def test_the_72b_branch_is_trained_in_two_pipeline_stages_and_merged_back():
    split, merged = (
        json.loads(Path("checkpoints/72b", name, "checkpoint.json").read_text())
        for name in ("sft_split", "sft")
    )
    assert split["grid"] == {"layers_per_stage": [2, 2], "pipeline": 2, "tensor": 2}
    assert merged["grid"] == {"layers_per_stage": [4], "pipeline": 1, "tensor": 2}
    assert merged["files"] == split["files"]


def test_the_released_model_gives_every_answer_of_the_one_that_was_exported():
    compared = json.loads(Path("metrics/72b/released_answers.json").read_text())
    samples = sum(scores("72b", "sft", task)["samples"] for task in TASKS)
    assert compared == {"equal": samples, "different": 0}
    assert [scores("72b", "released", task) for task in TASKS] == [
        scores("72b", "sft", task) for task in TASKS
    ]


def test_a_second_run_runs_nothing():
    assert "Data and pipelines are up to date" in dvc("repro")


def test_forced_runs_give_the_same_bytes():
    before = yaml.safe_load(Path("dvc.lock").read_text())
    for stage in (
        "prepare_sft@digit_strips",
        "prepare_eval@MMMU",
        "convert_lm_72b",
        "combine_72b",
        "pretrain_72b",
        "split_pp_72b",
        "generate_72b@captioning",
        "score_72b@captioning",
    ):
        dvc("repro", "--force", "--single-item", stage)
    assert yaml.safe_load(Path("dvc.lock").read_text()) == before


def test_the_full_scale_is_listed_and_planned():
    params = Path("params.yaml")
    smoke = params.read_text()
    params.write_text(composed(["scale=full"]))
    try:
        stages = dvc("stage", "list", "--name-only").split()
        assert {"sft_72b", "prepare_pretrain@laion_115m", "prepare_sft@clevr_math"} <= set(stages)
        # Without --force, DVC hashes what a stage reads before it lists the stage, and raises where
        # a stage before it never ran (dvc/stage/cache.py, _can_hash): what nobody has fetched.
        assert "src/train.py --params train.sft_72b" in dvc("repro", "--dry", "--force")
        listed = dvc("repro", "--dry", "--force", "sft_72b")
        assert "src/fetch_data.py --source coco_2017" in listed
        assert "src/generate.py" not in listed
        failed = run("repro", "environment")
        assert failed.returncode != 0
        assert "scale=full needs" in failed.stderr and "GPUs 8 (here 0)" in failed.stderr
    finally:
        params.write_text(smoke)
        dvc("repro", "environment")
