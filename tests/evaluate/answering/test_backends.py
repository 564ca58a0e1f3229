"""The same answers from one process, and from a Hugging Face export that a server asks.

That two tensor-parallel ranks give them as well is test_generation's.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.evaluate import fixtures
from tests.evaluate.small_model import (
    PARAMS,
    ROOT,
    become_only_rank,
    make_checkpoint,
    make_questions,
    reference_answers,
    run_generate,
    texts,
)

from nvlm.checkpoint.huggingface.exporting import export_hf


def test_a_served_export_gives_the_answers_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = make_questions(tmp_path / "data")
    checkpoint = make_checkpoint(tmp_path / "model", tensor=1)
    export_hf(checkpoint, tmp_path / "export", shard_bytes=1 << 30)
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.evaluate.serve_export"]
    arguments = [str(tmp_path / "export"), str(PARAMS.max_tiles)]
    with subprocess.Popen(
        command + arguments, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            printed = iter(process.stderr.readline, "")
            port = next(found[1] for line in printed if (found := re.search(r":(\d+) ", line)))
            url = f"http://127.0.0.1:{port}/v1"
            result = run_generate(tmp_path, checkpoint, 5, "--server", url)
        finally:
            process.kill()
    assert result.returncode == 0, result.stderr
    served = texts(tmp_path / "answers.jsonl", fixtures.read(data, "vqav2"))
    become_only_rank(monkeypatch)
    assert served == reference_answers(checkpoint, data)
