"""python -m nvlm.evaluate compare: files, directories, and a revision out of DVC's cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from tests.evaluate import fixtures

from nvlm.errors import UserError
from nvlm.evaluate.__main__ import answer_files

ROOT = Path(__file__).parents[3]
PARAMS = """
eval:
  tasks:
    VQAv2:
      ground_truth: {reader: vqav2}
      metric: vqa
      ask: {system: "", prompt: "", max_new_tokens: 8}
"""


def write_run(path: Path, answers: dict[int, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"question_id": key, "answer": value}) for key, value in answers.items()]
    path.write_text("\n".join(lines))


def run_compare(directory: Path, *runs: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nvlm.evaluate", "compare", *runs],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_directories_are_compared_task_by_task(tmp_path: Path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    fixtures.vqav2(tmp_path / "data/eval/VQAv2")
    write_run(tmp_path / "a/VQAv2.jsonl", dict.fromkeys((1, 2, 3, 4), "no"))
    write_run(tmp_path / "b/VQAv2.jsonl", {1: "yes", 2: "1", 3: "blue", 4: "yes"})
    write_run(tmp_path / "b/MMMU.jsonl", {})  # which a has not
    result = run_compare(tmp_path, "a", "b")
    assert result.returncode == 0, result.stderr
    heading, line = result.stdout.splitlines()
    assert heading.split()[:5] == ["task", "samples", "clusters", "A", "B"]
    # A: 1/3, 0, 0, 1; B: 1, 1, 0, 0. So two wins, one loss, one tie; by pictures +5/3 and -1, so
    # that two of the four ways to give signs differ by 2/3 or more: all.
    assert line.split()[:6] == ["VQAv2", "4", "2", "0.3333", "0.5000", "+0.1667"]
    assert line.split()[-4:] == ["2", "1", "1", "1"]
    nothing = run_compare(tmp_path, "a", "gone")
    assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1)
    assert "gone is missing" in nothing.stderr


def test_a_revision_comes_out_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    subprocess.run(["git", "init", "-q"], check=True)
    with Repo.init(".") as repo:
        write_run(Path("data/sft/VQAv2.jsonl"), {1: "yes"})
        repo.add("data/sft/VQAv2.jsonl")
        subprocess.run(["git", "add", "-A"], check=True)
        subprocess.run(["git", *identity, "commit", "-q", "-m", "first"], check=True)
        old = Path("data/sft/VQAv2.jsonl").read_text()
        Path("data/sft/VQAv2.jsonl").unlink()
        write_run(Path("data/sft/VQAv2.jsonl"), {1: "no"})
    found = answer_files("HEAD:data/sft/VQAv2.jsonl", tmp_path / "scratch")
    assert found["VQAv2"].read_text() == old
    with pytest.raises(UserError, match="HEAD:data/other can't be fetched"):
        answer_files("HEAD:data/other", tmp_path / "more")
    with pytest.raises(UserError, match="can't be fetched"):
        answer_files("nobranch:data/sft/VQAv2.jsonl", tmp_path / "most")
