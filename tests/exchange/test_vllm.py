"""vLLM itself serves the exports of the smoke graph with the answers of the engine.

Run with: make test-exchange (its own environment: vLLM wants an older transformers).
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.evaluate.loopback import completion, server

from nvlm.checkpoint.huggingface.exporting import export_hf
from nvlm.evaluate.answering.answers import read_answers
from nvlm.evaluate.answering.server import ask_server
from nvlm.evaluate.ground_truth.readers import read_questions
from nvlm.evaluate.params import GenerateParams, RunParams, TaskParams
from nvlm.params import load_params, section_keys

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-exchange/vllm/bin/python"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
# Answers that have to be the engine's, at least: with the plugin, and without.
SHARES = {"72b": {"nvlm": 1.0, "none": 0.98}, "34b": {"nvlm": 1.0, "none": 0.95}}


@pytest.fixture(scope="module", params=["72b", "34b"])
def served(request, tmp_path_factory) -> tuple[str, Path]:
    """A branch, and a directory with its export, the requests and the engine's answers."""
    branch = request.param
    checkpoint = ROOT / "checkpoints" / branch / "sft"
    if not PYTHON.is_file() or not checkpoint.is_dir():
        pytest.skip(f"no {PYTHON} or no {checkpoint}: run make repro, then make test-exchange")
    directory = tmp_path_factory.mktemp(branch)
    export_hf(checkpoint, directory / "export", shard_bytes=1 << 30)
    bodies: list[dict[str, Any]] = []
    expected: list[str] = []

    async def record(body: dict[str, Any]) -> web.Response:
        bodies.append(body)
        return completion("")

    params = load_params("eval.generate", GenerateParams)
    one = RunParams(
        batch_size=1, tile_chunk=1, concurrency=1, retries=0, timeout=60, answer_ahead=False
    )
    with server(record) as url:
        for name in section_keys("data.eval"):
            task = load_params(f"eval.tasks.{name}", TaskParams)
            questions = read_questions(ROOT / "data/eval" / name, task.ground_truth)
            ask_server(url, questions, task.ask, params, one, write=lambda _: None)
            answers = ROOT / f"data/generated/{branch}/sft/{name}.jsonl"
            expected += [answer.text for answer in read_answers(answers, questions)]
    (directory / "bodies.json").write_text(json.dumps(bodies))
    (directory / "expected.json").write_text(json.dumps(expected))
    return branch, directory


@pytest.mark.parametrize("plugin", ["nvlm", "none"])
def test_answers_of_vllm_are_the_engines(served, plugin, tmp_path):
    branch, directory = served
    script = Path(__file__).with_name("vllm_answers.py")
    files = [directory / "export", directory / "bodies.json", tmp_path / "answers.json"]
    environment = os.environ | ENVIRONMENT
    environment |= {"VLLM_PLUGINS": plugin, "HF_HOME": str(tmp_path / "cache")}
    environment.pop("PYTHONPATH", None)
    subprocess.run([PYTHON, script, *files], env=environment, check=True)
    expected = json.loads((directory / "expected.json").read_text())
    answers = json.loads(files[-1].read_text())
    assert len(answers) == len(expected) >= 1000
    same = sum(a == b for a, b in zip(answers, expected, strict=True))
    print(f"{branch}, plugin {plugin}: {same} of {len(expected)} answers are the engine's")
    assert same >= SHARES[branch][plugin] * len(expected)
