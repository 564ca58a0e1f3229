"""An adapter in a checkpoint: folded in exactly, kept through layout changes, refused elsewhere."""

import json

import pytest
import torch
from tests.checkpoint.build import build_combined, with_adapter
from tests.parallel.grids import write_logits

from nvlm.checkpoint.format.adapter import TARGETS, Adapter, adapter_path
from nvlm.checkpoint.format.files import read_tensors
from nvlm.checkpoint.format.layout import part_names
from nvlm.checkpoint.format.manifest import MANIFEST, check_digests, read_manifest
from nvlm.checkpoint.huggingface.merged import whole_tensors
from nvlm.checkpoint.megatron.exporting import export_megatron
from nvlm.checkpoint.relayout.merge import merge_adapter
from nvlm.checkpoint.relayout.reshard import reshard
from nvlm.checkpoint.verify.compare import compare
from nvlm.checkpoint.verify.summary import describe
from nvlm.errors import UserError
from nvlm.launch.local import launch
from nvlm.parallel.grid import GridParams

ADAPTER = Adapter(rank=3, alpha=7.5, targets=tuple(TARGETS))
SOME = Adapter(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))


def whole(checkpoint):
    """Every tensor of ``checkpoint``, merged from its ranks."""
    manifest = read_manifest(checkpoint)
    return {
        name: torch.cat(list(pieces))
        for part in part_names(manifest.architecture)
        for name, pieces in whole_tensors(checkpoint, manifest, part)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", [ADAPTER, SOME])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_what_is_folded_in_is_the_product(tmp_path, dtype, adapter, family):
    """W + alpha / rank * B A, worked out in fp64 on whole tensors under Hugging Face's names."""
    build_combined(tmp_path, family=family, dtype=dtype)
    with_adapter(tmp_path / "combined", tmp_path / "adapted", adapter)
    merged = merge_adapter(tmp_path / "adapted", tmp_path / "merged")
    assert merged.adapter is None and merged == read_manifest(tmp_path / "merged")
    check_digests(tmp_path / "merged", merged)
    base, found = whole(tmp_path / "combined"), whole(tmp_path / "merged")
    assert merged.files.keys() == read_manifest(tmp_path / "combined").files.keys()
    assert found.keys() == base.keys()
    changed = 0
    for name, tensor in found.items():
        expected, module = base[name], name.rpartition(".")[0]
        if module.rpartition(".")[2] in adapter.targets and name.endswith("weight"):
            layer = int(name.split(".")[3])
            matrices = read_tensors(tmp_path / "adapted" / adapter_path(layer))
            short = ".".join(module.split(".")[4:])
            down, up = (matrices[f"{short}.lora_{kind}"].double() for kind in "AB")
            delta = adapter.alpha / adapter.rank * (up @ down)
            assert delta.abs().max() > 0.01
            expected, changed = expected.double() + delta, changed + 1
            rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6
            torch.testing.assert_close(tensor.double(), expected, rtol=rounding, atol=1e-6)
        else:
            assert torch.equal(tensor, expected), name
    assert changed == 4 * len(adapter.targets)
    for name in merged.files:  # what no adapter touches is the source's own file
        same = (tmp_path / "merged" / name).samefile(tmp_path / "combined" / name)
        assert same == ("language_model.layer" not in name)


@pytest.mark.parametrize(
    "grid", [GridParams(tensor=1), GridParams(tensor=2), GridParams(tensor=2, pipeline=2)]
)
def test_merged_logits_are_those_with_the_adapter_beside(tmp_path, grid):
    build_combined(tmp_path, dtype=torch.float32)
    reshard(tmp_path / "combined", tmp_path / "base", tensor=grid.tensor, pipeline=grid.pipeline)
    with_adapter(tmp_path / "base", tmp_path / "adapted", ADAPTER)
    merge_adapter(tmp_path / "adapted", tmp_path / "merged")
    logits = []
    for name in ("base", "adapted", "merged"):
        out = tmp_path / f"{name}.pt"
        launch(write_logits, grid.processes, tmp_path / name, grid, out)
        logits.append(torch.load(out))
    base, adapted, merged = logits
    assert (adapted - base).abs().max() > 0.1
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-5)


def test_layout_changes_link_the_adapter(tmp_path):
    build_combined(tmp_path, dtype=torch.float32)
    with_adapter(tmp_path / "combined", tmp_path / "adapted", SOME)
    reshard(tmp_path / "adapted", tmp_path / "one", tensor=1)
    reshard(tmp_path / "one", tmp_path / "split", pipeline=2)
    assert read_manifest(tmp_path / "split").adapter == SOME
    for layer in range(4):
        name = adapter_path(layer)
        assert (tmp_path / "split" / name).samefile(tmp_path / "adapted" / name)
    # Merged in either layout: the same model.
    merge_adapter(tmp_path / "split", tmp_path / "a")
    merge_adapter(tmp_path / "adapted", tmp_path / "b")
    first, second = whole(tmp_path / "a"), whole(tmp_path / "b")
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=1e-6, rtol=1e-6)


def test_an_adapter_is_seen_by_who_looks_at_checkpoints(tmp_path):
    build_combined(tmp_path)
    adapted = with_adapter(tmp_path / "combined", tmp_path / "adapted", SOME)
    told = describe(adapted)
    assert "not folded in   rank 2, alpha 4, on q_proj, down_proj" in told
    assert "\nadapter         " in told and "\ntokenizer       " in told
    differences = [c for c in compare(tmp_path / "combined", tmp_path / "adapted") if c.difference]
    assert [c.name for c in differences] == ["adapter"]
    with_adapter(tmp_path / "combined", tmp_path / "other", SOME, seed=6)
    differing = {c.name for c in compare(tmp_path / "adapted", tmp_path / "other") if c.difference}
    assert differing == {adapter_path(layer) for layer in range(4)}


def test_a_checkpoint_without_an_adapter_is_not_merged(tmp_path):
    build_combined(tmp_path)
    with pytest.raises(UserError, match="combined has no adapter to fold in"):
        merge_adapter(tmp_path / "combined", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_megatron_gets_the_merged_model(tmp_path):
    build_combined(tmp_path)
    with_adapter(tmp_path / "combined", tmp_path / "adapted", SOME)
    merge_adapter(tmp_path / "adapted", tmp_path / "merged")
    for name in ("adapted", "merged"):
        export_megatron(tmp_path / name, tmp_path / f"{name}_megatron")
    files = sorted((tmp_path / "merged_megatron").rglob("*.pt"))
    assert len(files) == 2
    for path in files:
        other = tmp_path / "adapted_megatron" / path.relative_to(tmp_path / "merged_megatron")
        assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m["adapter"].update(rank=0), "rank: 0 should be 1 or more"),
        (lambda m: m["adapter"].update(targets=["lm_head"]), r"\['lm_head'\] should name some of"),
        (lambda m: m["adapter"].pop("alpha"), "manifest.adapter lacks or does not know alpha"),
        (lambda m: m["files"].pop(adapter_path(3)), f"does not list {adapter_path(3)}"),
    ],
)
def test_a_manifest_that_contradicts_itself(tmp_path, change, complaint):
    build_combined(tmp_path)
    with_adapter(tmp_path / "combined", tmp_path / "adapted", SOME)
    path = tmp_path / "adapted" / MANIFEST
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=complaint):
        read_manifest(tmp_path / "adapted")
