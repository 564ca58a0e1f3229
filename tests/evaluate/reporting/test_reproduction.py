"""Held against published scores: pass, near or off, and the questions that are judged otherwise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tests.evaluate import fixtures

from nvlm.errors import UserError
from nvlm.evaluate.params import EvaluationParams, PublishedParams
from nvlm.evaluate.reporting.reproduction import Reproduction, reproduction
from nvlm.params import composed, parse_params

ROOT = Path(__file__).parents[3]
ROWS = (59.7, 58.7, 59.9)  # MMMU val: the paper, its card, the card of the mcore model


def held(score, interval, published=ROWS, scale=100):
    return Reproduction(
        task="MMMU",
        split="val",
        score=score,
        interval=interval,
        published=dict(zip(("paper", "card", "card_mcore"), published, strict=False)),
        scale=scale,
    ).verdict


@pytest.mark.parametrize(
    ("score", "interval", "verdict"),
    [
        (59.0, (58.9, 59.1), "pass"),
        (58.66, (58.6, 58.7), "pass"),  # rounds to 58.7
        (59.94, (59.9, 60.0), "pass"),
        (60.0, (59.97, 60.1), "near"),  # less than the spread of 1.2 above
        (57.5, (57.4, 57.6), "near"),  # 1.2 below
        (57.4, (57.3, 57.5), "off"),
        (61.2, (61.1, 61.3), "off"),
        (50.0, (40.0, 58.7), "near"),  # may be luck: the interval reaches the lowest
        (50.0, (40.0, 58.6), "off"),
        (70.0, (59.9, 80.0), "near"),
    ],
)
def test_the_span_of_the_published_is_the_tolerance(score, interval, verdict):
    assert held(score, interval) == verdict


def test_where_the_published_agree_only_chance_excuses():
    alike = (85.4, 85.4, 85.4)
    assert held(85.43, (85.2, 85.6), alike) == "pass"
    assert held(85.3, (85.1, 85.5), alike) == "near"
    assert held(85.3, (85.25, 85.34), alike) == "off"
    assert held(852.4, (852, 853), (853, 852, 851), scale=1000) == "pass"
    assert held(853.6, (853.55, 853.7), (853,), scale=1000) == "off"


def test_every_published_row_of_the_72b_is_in_the_configuration():
    """Of Table 7 and the two cards, by hand."""
    evaluation = parse_params(
        OmegaConf.create(composed(["scale=full"])).eval, EvaluationParams, "eval"
    )
    found = {
        (task, row.split, row.source): row.scores["72b"]
        for task, params in evaluation.tasks.items()
        for row in (params.published.rows if params.published else ())
    }
    table = {
        ("MMMU", "test"): (54.6, 54.9, 54.1),
        ("MMMU", "val"): (59.7, 58.7, 59.9),
        ("MathVista", "testmini"): (65.2, 65.2, 67.4),
        ("VQAv2", "test-dev"): (85.4, 85.4, 85.4),
        ("AI2D", "test"): (85.2,),
        ("AI2D_no_mask", "test"): (94.2, 94.2, 94.4),
        ("TextVQA", "val"): (82.1, 82.6, 81.2),
        ("ChartQA", "test"): (86.0, 86.0, 86.9),
        ("DocVQA", "test"): (92.6, 92.6, 92.1),
        ("RealWorldQA", "test"): (69.7, 69.5, 66.8),
        ("OCRBench", "all"): (853, 852, 851),
    }
    sources = ("paper", "card", "card_mcore")
    assert found == {
        (*key, source): points
        for key, row in table.items()
        for source, points in zip(sources, row, strict=False)
    }
    mmmu, doc = evaluation.tasks["MMMU"].published, evaluation.tasks["DocVQA"].published
    numbers = {"score": 0.58, "low": 0.55, "high": 0.61}
    report = numbers | {"score": 0.1, "other_scores": {"recipe": numbers}}
    of_mmmu = reproduction("MMMU", mmmu, "72b", report)
    assert of_mmmu.split == "val"
    assert (of_mmmu.score, of_mmmu.spread) == pytest.approx((58.0, 1.2))
    assert reproduction("DocVQA", doc, "72b", report).split == "test (ours: val)"
    assert reproduction("MMMU", mmmu, "7b", report) is None


def published(**changes):
    row = {"source": "paper", "split": "val", "scores": {"72b": 1}}
    return {"split": "val", "rows": [row | changes]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (published(split="test"), r"t.split: one of the rows' \(test\), not 'val'"),
        (published(scores={}), r"t.rows.0.scores: points by branch"),
        (published(scores={"72b": "many"}), r"scores.72b: Value 'many'"),
        (published(points=3), r"points: Key 'points' not in"),
    ],
)
def test_a_faulty_row_is_named(values, message):
    with pytest.raises(UserError, match=message):
        parse_params(values, PublishedParams, "t")


def test_an_unknown_source_is_named():
    values = OmegaConf.create(composed([])).eval
    values.tasks.VQAv2.published.rows[0].source = "rumour"
    with pytest.raises(UserError, match=r"VQAv2\.published: source: one of paper, .*not 'rumour'"):
        parse_params(values, EvaluationParams, "eval")


def run_reproduce(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nvlm.evaluate", "reproduce", *options],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_tells_pass_near_and_off_and_the_questions(tmp_path: Path):
    (tmp_path / "params.yaml").write_text(composed([]))
    for task, rule, score in (
        ("TextVQA", "score", 0.82),
        ("VQAv2", "leave_one_out", 0.5),
        ("MMMU", "recipe", 0.601),
    ):
        numbers = {"score": score, "low": score - 0.001, "high": score + 0.001}
        report = {**numbers, "other_scores": {rule: numbers}}
        fixtures.write_json(tmp_path / f"reports/scores/72b/released/{task}.json", report)
    fixtures.vqav2(tmp_path / "data/eval/VQAv2")
    stored = {1: "yes", 2: "1", 3: "red", 4: "no"}
    for name, answers in (
        ("data/generated/72b/released/VQAv2.jsonl", stored | {2: "one.", 3: "blue"}),
        ("stored/VQAv2.jsonl", stored),
    ):
        lines = [json.dumps({"question_id": n, "answer": text}) for n, text in answers.items()]
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("\n".join(lines))
    result = run_reproduce(tmp_path, "--answers", "stored")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    verdicts = {line.split()[0]: line.split()[-1] for line in lines[1:4]}
    assert verdicts == {"TextVQA": "pass", "VQAv2": "off", "MMMU": "near"}
    # "one." is "1" to the rule, so that question 3 alone differs.
    assert lines[-2:] == [
        "VQAv2: 1 of 4 questions are judged differently",
        "  3: ours 'blue' 0.00, stored 'red' 1.00 (truth: dark red | red)",
    ]
    for options, message in (
        (("--variant", "sft"), "72b/sft holds no score that is published for 72b"),
        (("--answers", "nowhere"), "nowhere is missing"),
        (("--answers", "data/eval"), "have answers to no task in common"),
    ):
        failed = run_reproduce(tmp_path, *options)
        assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
        assert message in failed.stderr
