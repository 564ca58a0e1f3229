"""Megatron-core itself reads both formats and gives the logits of transformers.

Run with: make test-exchange (Megatron-core 0.16 in an environment of its own, on CPUs).
"""

import socket
import subprocess
from pathlib import Path

import pytest
import torch
from tests.checkpoint.models import save_language

from nvlm.checkpoint.huggingface.convert import convert_language
from nvlm.checkpoint.megatron.dist_exporting import export_torch_dist
from nvlm.checkpoint.megatron.exporting import export_megatron

PYTHON = Path(__file__).parents[2] / ".venv-exchange/megatron/bin/python"
EXPORTS = {"torch": export_megatron, "torch_dist": export_torch_dist}


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("family", "form", "saved", "loaded"),
    [
        ("llama", "torch", 1, 1),
        ("qwen2", "torch", 2, 2),
        ("qwen2", "torch_dist", 1, 1),
        ("qwen2", "torch_dist", 1, 2),
        ("llama", "torch_dist", 2, 1),
    ],
)
def test_logits_of_megatron_core(tmp_path, family, form, saved, loaded):
    if not PYTHON.is_file():
        pytest.skip(f"no {PYTHON}: run make test-exchange")
    model = save_language(tmp_path / "hf", family)
    convert_language(tmp_path / "hf", tmp_path / "core", tensor=saved, vocabulary_multiple=8)
    EXPORTS[form](tmp_path / "core", tmp_path / "megatron")
    ids = torch.randint(0, 101, (1, 17), generator=torch.Generator().manual_seed(0))
    torch.save(ids, tmp_path / "ids.pt")
    script = Path(__file__).with_name("megatron_logits.py")
    words = [tmp_path / "megatron", form, str(loaded), tmp_path / "ids.pt", tmp_path / "logits.pt"]
    subprocess.run([PYTHON, script, *words, free_port()], check=True)
    with torch.no_grad():
        expected = model(ids).logits
    found = torch.load(tmp_path / "logits.pt")[..., :101]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
