"""The scoring stage as DVC runs it, on hand-made sets in the official formats."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from tests.evaluate import fixtures

from nvlm.evaluate.reporting.table import score_table

ROOT = Path(__file__).parents[3]
PARAMS = """
eval:
  tasks:
    captioning:
      ground_truth: {reader: coco}
      metric: cider
      ask: &ask {system: "", prompt: "", max_new_tokens: 8}
    TextVQA: {ground_truth: {reader: textvqa}, metric: vqa, ask: *ask}
    VQAv2: {ground_truth: {reader: vqav2}, metric: vqa, ask: *ask}
    MMMU: {ground_truth: {reader: mmmu}, metric: mmmu, ask: *ask}
    unknown: {ground_truth: {reader: vqav2}, metric: f1, ask: *ask}
"""


def run_score(
    directory: Path,
    task: str,
    make: Callable[[Path], Path],
    answers: Mapping[Any, str],
    *options: str,
) -> subprocess.CompletedProcess[str]:
    (directory / "params.yaml").write_text(PARAMS)
    make(directory / "data" / task)
    lines = [json.dumps({"question_id": key, "answer": value}) for key, value in answers.items()]
    (directory / "answers.jsonl").write_text("\n".join(lines))
    arguments = ["--task", task, "--generated", "answers.jsonl", "--data", f"data/{task}"]
    arguments += ["--metrics", f"metrics/{task}.json", "--gallery", f"plots/{task}.png"]
    arguments += ["--details", f"reports/{task}.json"]
    # A torch that can't be imported: scoring must not need it.
    (directory / "torch.py").write_text("raise ImportError('scoring imports torch')")
    return subprocess.run(
        [sys.executable, ROOT / "src/score.py", *arguments, *options],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": f"{directory}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        check=False,
    )


def scores_of(directory: Path, task: str) -> dict[str, Any]:
    details = json.loads((directory / f"reports/{task}.json").read_text())
    metrics = json.loads((directory / f"metrics/{task}.json").read_text())
    assert metrics == {"score": details["score"]}  # a row a task of dvc metrics diff
    return details


def test_vqav2(tmp_path: Path):
    answers = {1: "Yes.", 2: "one", 3: "dark red", 4: ""}
    result = run_score(tmp_path, "VQAv2", fixtures.vqav2, answers)
    assert result.returncode == 0, result.stderr
    # "one" is "1" after normalisation, which six of ten said; two of ten said "dark red".
    scores = scores_of(tmp_path, "VQAv2")
    assert (scores["score"], scores["samples"], scores["unparsable"]) == (0.666667, 4, 1)
    assert scores["clusters"] == 2  # pictures
    assert scores["low"] < scores["score"] < scores["high"]
    # "yes" scores 1 of 4, and 1/3 for the one "no" beside nine "yes" goes to "no": 4/3 of 4.
    assert (scores["majority"], scores["majority_answer"]) == (0.333333, "no")
    official = round((1 + 1 + (2 * 1 / 3 + 8 * 2 / 3) / 10) / 4, 6)
    assert scores["other_scores"]["leave_one_out"]["score"] == official
    by_category = scores["by_category"]
    assert {
        name: (part["score"], part["samples"], part["clusters"])
        for name, part in by_category.items()
    } == {"number": (1.0, 1, 1), "other": (0.666667, 1, 1), "yes/no": (0.5, 2, 2)}
    # The constant "no" in the two yes/no questions.
    assert by_category["yes/no"]["majority"] == 0.666667


def test_answers_to_blank_images_are_a_baseline(tmp_path: Path):
    lines = [json.dumps({"question_id": key, "answer": "no"}) for key in (1, 2, 3, 4)]
    (tmp_path / "blank.jsonl").write_text("\n".join(lines))
    answers = dict.fromkeys((1, 2, 3, 4), "yes")
    options = ("--blank", "blank.jsonl", "--confusion", "pairs.csv")
    result = run_score(tmp_path, "VQAv2", fixtures.vqav2, answers, *options)
    assert result.returncode == 0, result.stderr
    scores = scores_of(tmp_path, "VQAv2")
    assert (scores["score"], scores["blank"]) == (0.25, 0.333333)
    assert (tmp_path / "pairs.csv").read_text().splitlines()[1] == "yes,yes"


def test_mmmu(tmp_path: Path):
    answers = {
        "validation_Art_Theory_1": "(B) because (A) is wrong",
        "validation_Art_Theory_2": "what?",
        "validation_Math_1": "5 of 7",
    }
    result = run_score(tmp_path, "MMMU", fixtures.mmmu, answers)
    assert result.returncode == 0, result.stderr
    scores = scores_of(tmp_path, "MMMU")
    assert scores["score"] == pytest.approx(1 / 3, abs=1e-6)
    assert scores["other_scores"]["first_choice"]["score"] == pytest.approx(2 / 3, abs=1e-6)
    # The recipe reads A in the first, guesses A in the second, finds 5 in the third.
    assert scores["other_scores"]["recipe"]["score"] == pytest.approx(2 / 3, abs=1e-6)
    assert (scores["samples"], scores["unparsable"], scores["majority"]) == (3, 1, 0.333333)


def test_captioning_and_textvqa_are_scored_by_their_rules(tmp_path: Path):
    captions = {9: "A red square.", 25: "the dog is running"}
    assert run_score(tmp_path, "captioning", fixtures.coco, captions).returncode == 0
    scores = scores_of(tmp_path, "captioning")
    assert scores["samples"] == 2
    assert scores["score"] > scores["majority"] > 0
    assert run_score(tmp_path, "TextVQA", fixtures.textvqa, {34602: "42"}).returncode == 0
    assert scores_of(tmp_path, "TextVQA")["score"] == 1.0


def test_two_runs_write_the_same_bytes(tmp_path: Path):
    written = []
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        run_score(tmp_path / run, "VQAv2", fixtures.vqav2, dict.fromkeys((1, 2, 3, 4), "no"))
        written.append(
            [
                (tmp_path / run / name).read_bytes()
                for name in ("metrics/VQAv2.json", "reports/VQAv2.json", "plots/VQAv2.png")
            ]
        )
    assert written[0] == written[1]
    with Image.open(tmp_path / "a/plots/VQAv2.png") as gallery:
        colours = {colour for _, colour in gallery.convert("RGB").getcolors(1 << 24) or []}
    assert {(26, 127, 55), (180, 35, 24)} <= colours  # frames of the right and of the wrong


@pytest.mark.parametrize(
    ("task", "answers", "message"),
    [
        ("VQAv2", {1: "yes"}, "3 of 4 questions have no answer"),
        (
            "unknown",
            {},
            "metric: one of anls, cider, exact, mathvista, mmmu, ocrbench, relaxed, vqa, not 'f1'",
        ),
        ("absent", {}, "no section 'eval.tasks.absent'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    tmp_path: Path, task: str, answers: Mapping[Any, str], message: str
):
    result = run_score(tmp_path, task, fixtures.vqav2, answers)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "metrics").exists()
    assert not (tmp_path / "plots").exists()


def test_table_shows_majority_pretrained_and_final_scores(tmp_path: Path):
    for model, score in (("pretrained", 0.25), ("sft", 0.75)):
        counts = {"majority": 0.4, "samples": 500, "unparsable": 3}
        fixtures.write_json(tmp_path / f"34b/{model}/VQAv2.json", counts | {"score": score})
    fixtures.write_json(tmp_path / "72b/sft/VQAv2.json", counts | {"score": 0.8})
    fixtures.write_json(tmp_path / "environment.json", {})
    heading, first, second = score_table(tmp_path, tmp_path / "dvc.lock").split("\n")
    assert heading.split() == [
        "branch", "task", "majority", "pretrained", "sft", "samples", "unparsable",
    ]  # fmt: skip
    assert first.split() == ["34b", "VQAv2", "0.400", "0.250", "0.750", "500", "3"]
    assert second.split() == ["72b", "VQAv2", "0.400", "-", "0.800", "500", "3"]


STAGES = {  # outputs, and what was read for each
    "sft_split": (["checkpoints/sft_split"], []),
    "merge": (["checkpoints/sft"], ["checkpoints/sft_split"]),
    "generate": (["answers"], ["checkpoints/sft", "data/eval", "stages/code/generate.txt"]),
    "score": (["72b/sft/VQAv2.json"], ["answers", "stages/code/score.txt"]),
    "score_other": (["72b/sft/MMMU.json"], ["answers"]),
    "code": (["stages/code"], ["src"]),
}


@pytest.mark.parametrize(
    ("since", "older"),
    [
        ([], []),
        (["merge"], ["MMMU", "VQAv2"]),  # the checkpoint is newer than the answers
        (["sft_split"], ["MMMU", "VQAv2"]),  # what it was merged from is newer than it
        (["merge", "generate"], ["MMMU", "VQAv2"]),  # answered, not scored
        (["merge", "generate", "score"], ["MMMU"]),
        (["code"], []),
    ],
)
def test_a_score_of_an_older_checkpoint_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: list[str], older: list[str]
):
    """``since``: the stages that have run a second time, in this order, each to another result."""
    monkeypatch.chdir(tmp_path)
    digests = {out: f"{out} 1" for outs, _ in STAGES.values() for out in outs}
    lock: dict[str, Any] = {}
    for run, stages in ((1, STAGES), (2, since)):
        for stage in stages:
            outs, deps = STAGES[stage]
            digests |= {out: f"{out} {run}" for out in outs}
            lock[stage] = {
                kind: [{"path": path, "md5": digests.get(path, path)} for path in paths]
                for kind, paths in (("outs", outs), ("deps", deps))
            }
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": lock}))
    for task in ("VQAv2", "MMMU"):
        report = {"majority": 0.4, "samples": 500, "unparsable": 3, "score": 0.75}
        fixtures.write_json(Path(f"72b/sft/{task}.json"), report)
    lines = score_table(Path(), Path("dvc.lock")).split("\n")
    assert [line.split()[1] for line in lines if "0.750*" in line] == older
    assert lines[-1].startswith("* of an older checkpoint") == bool(older)
