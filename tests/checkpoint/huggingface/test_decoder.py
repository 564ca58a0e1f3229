"""The decoder out of an export: a plain model with the logits of the one that went in."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.build import build_combined
from tests.checkpoint.models import save_language
from tests.evaluate.small_model import make_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from nvlm.checkpoint.huggingface.decoder import extract_decoder
from nvlm.checkpoint.huggingface.exporting import export_hf
from nvlm.errors import UserError

IDS = torch.tensor([[5, 6, 0, 9, 100, 7, 8]])


def logits(directory: Path) -> torch.Tensor:
    loaded: Any = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    model, problems = loaded
    assert not any(problems.values()), problems
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize(("family", "tied"), [("qwen2", False), ("llama", False), ("qwen2", True)])
def test_the_decoder_has_the_logits_of_the_model_that_went_in(family, tied, tmp_path):
    build_combined(tmp_path, family=family, dtype=torch.float32, tied=tied)
    export_hf(tmp_path / "combined", tmp_path / "export", shard_bytes=10_000)
    extract_decoder(tmp_path / "export", tmp_path / "decoder")
    model = save_language(tmp_path / "model", family, tied=tied)
    with torch.no_grad():
        assert torch.equal(logits(tmp_path / "decoder"), model(IDS).logits)
    assert len(list((tmp_path / "decoder").glob("*.safetensors"))) > 2  # file by file
    assert not list((tmp_path / "decoder").glob("*.py"))


def test_rows_behind_the_trained_vocabulary_are_left_out(tmp_path):
    """The image token lies behind 259 rows: an export has 320, all of which a softmax would see."""
    checkpoint = make_checkpoint(tmp_path, 1)
    export_hf(checkpoint, tmp_path / "export", shard_bytes=1 << 30)
    assert (
        json.loads((tmp_path / "export/config.json").read_text())["llm_config"]["vocab_size"] > 259
    )
    extract_decoder(tmp_path / "export", tmp_path / "decoder")
    found = logits(tmp_path / "decoder")
    assert found.shape[-1] == 259
    assert torch.equal(found, logits(tmp_path / "hf_language"))
    index = json.loads((tmp_path / "decoder/model.safetensors.index.json").read_text())
    assert "lm_head.weight" in index["weight_map"]
    assert not [name for name in index["weight_map"] if "vision" in name or "mlp1" in name]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "decoder")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


def test_what_is_no_nvlm_d_or_not_whole_is_one_sentence(tmp_path):
    build_combined(tmp_path)
    with pytest.raises(UserError, match=r"hf_language/config.json is of .*, not of NVLM_D"):
        extract_decoder(tmp_path / "hf_language", tmp_path / "decoder")
    export_hf(tmp_path / "combined", tmp_path / "export", shard_bytes=10_000)
    next((tmp_path / "export").glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match="is missing: download it again"):
        extract_decoder(tmp_path / "export", tmp_path / "decoder")
    assert not (tmp_path / "decoder").exists()
