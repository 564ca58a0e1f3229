"""``torch_dist`` files: read by PyTorch's own distributed checkpointing, and back by us."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.build import build_combined
from tests.checkpoint.megatron.stand_in import refused
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from nvlm.checkpoint.format.manifest import check_digests, read_manifest
from nvlm.checkpoint.megatron.dist_exporting import export_torch_dist
from nvlm.checkpoint.megatron.exporting import export_megatron
from nvlm.checkpoint.megatron.importing import ImportOptions, import_megatron
from nvlm.checkpoint.relayout.reshard import reshard
from nvlm.checkpoint.verify.compare import compare

ITERATION = "iter_0000001"


def load(directory: Path) -> dict[str, torch.Tensor]:
    """What PyTorch loads, whole tensors, as Megatron-LM's dist_checkpoint_io.py asks for them."""
    reader = FileSystemReader(directory / ITERATION)
    state = {
        key: torch.empty(described.size, dtype=described.properties.dtype)
        for key, described in reader.read_metadata().state_dict_metadata.items()
        if isinstance(described, TensorStorageMetadata)
    }
    dcp_load(state, storage_reader=reader, no_dist=True)
    return state


def of_ranks(directory: Path, tensor: int) -> list[dict[str, Any]]:
    """The models of the ``torch`` export's ranks, one pipeline stage."""
    return [
        torch.load(
            directory / ITERATION / f"mp_rank_{rank:02d}/model_optim_rng.pt", weights_only=False
        )["model"]
        for rank in range(tensor)
    ]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_pytorch_loads_the_tensors_of_the_torch_format(tmp_path, family, tensor):
    build_combined(tmp_path, family=family, tensor=tensor)
    export_torch_dist(tmp_path / "combined", tmp_path / "dist")
    export_megatron(tmp_path / "combined", tmp_path / "torch")
    found, ranks = load(tmp_path / "dist"), of_ranks(tmp_path / "torch", tensor)
    names = {name for name, value in ranks[0].items() if value is not None}
    assert found.keys() == names
    for name in names:
        shares = [rank[name] for rank in ranks]
        shape = found[name].shape
        if name.startswith("language_model.") and name.endswith("mlp.linear_fc1.weight"):
            halves = [share.chunk(2) for share in shares]
            expected = torch.cat([half[index] for index in (0, 1) for half in halves])
        else:
            fitting = [
                whole
                for whole in (shares[0], torch.cat(shares), torch.cat(shares, dim=-1))
                if whole.shape == shape
            ]
            expected = fitting[0]
        assert torch.equal(found[name].view(torch.uint8), expected.view(torch.uint8)), name


def test_files_around_the_tensors(tmp_path):
    build_combined(tmp_path)
    export_torch_dist(tmp_path / "combined", tmp_path / "dist")
    assert (tmp_path / "dist/latest_checkpointed_iteration.txt").read_text() == "1"
    config = json.loads((tmp_path / "dist" / ITERATION / "metadata.json").read_text())
    assert config["sharded_backend"] == "torch_dist" and config["sharded_backend_version"] == 1
    common = torch.load(tmp_path / "dist" / ITERATION / "common.pt", weights_only=False)
    assert common["content_metadata"]["non_homogeneous_layers"]
    assert (common["args"].num_layers, common["iteration"]) == (4, 1)
    assert (tmp_path / "dist/tokenizer/tokenizer.json").is_file()
    keys = FileSystemReader(tmp_path / "dist" / ITERATION).read_metadata().state_dict_metadata
    layer = "language_model.decoder.layers.3."
    assert f"{layer}mlp.linear_fc2.weight" in keys
    for module in ("mlp.linear_fc2", "self_attention.core_attention"):
        assert f"{layer}{module}._extra_state/shard_0_1" in keys
    export_torch_dist(tmp_path / "combined", tmp_path / "again")
    for path in (tmp_path / "dist").rglob("*"):
        if path.is_file():
            again = tmp_path / "again" / path.relative_to(tmp_path / "dist")
            assert path.read_bytes() == again.read_bytes(), path


@pytest.mark.parametrize("grid", [{}, {"pipeline": 4}, {"tensor": 1, "layers_per_stage": [3, 1]}])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_out_and_in_again(tmp_path, family, grid):
    build_combined(tmp_path, family=family)
    reshard(tmp_path / "combined", tmp_path / "source", **({"tensor": 2} | grid))
    export_torch_dist(tmp_path / "source", tmp_path / "dist")
    manifest = import_megatron(tmp_path / "dist", tmp_path / "back", ImportOptions())
    assert manifest == read_manifest(tmp_path / "source")
    check_digests(tmp_path / "back", manifest)


def test_another_tensor_parallel_size_of_a_decoder(tmp_path):
    """The tower's dummy heads are those of the size that it was saved for."""
    build_combined(tmp_path)
    export_torch_dist(tmp_path / "language", tmp_path / "dist")
    manifest = import_megatron(tmp_path / "dist", tmp_path / "back", ImportOptions(tensor=1))
    assert manifest.grid.tensor == 1
    assert not [c for c in compare(tmp_path / "language", tmp_path / "back") if c.difference]
    refused(tmp_path / "dist", "does not divide by 5: give another --tensor", tensor=5)


def stacked(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All layers of one kind in one tensor, as Megatron-core 0.16 saves a model by default."""
    names = {name for name in state if ".decoder.layers." in name}
    whole = {name: state[name] for name in state.keys() - names}
    for name in sorted(names):
        half, _, tail = name.partition(".decoder.layers.")
        number, _, rest = tail.partition(".")
        if number == "0":
            layers = [f"{half}.decoder.layers.{n}.{rest}" for n in range(len(state))]
            own = [state[layer] for layer in layers if layer in state]
            whole[f"{half}.decoder.layers.{rest}"] = torch.stack(own)
    return whole


@pytest.mark.parametrize("prefix", ["", "model."])
def test_what_others_write_is_read(tmp_path, prefix):
    """PyTorch's own writer: whole tensors, stacked layers, names with and without a prefix."""
    build_combined(tmp_path)
    export_torch_dist(tmp_path / "combined", tmp_path / "dist")
    state = {prefix + name: value for name, value in stacked(load(tmp_path / "dist")).items()}
    state["optimizer.state.exp_avg"] = torch.zeros(3)
    for path in (tmp_path / "dist" / ITERATION).glob("*.distcp"):
        path.unlink()
    writer = FileSystemWriter(tmp_path / "dist" / ITERATION)
    dcp_save({**state, "rng_state": {"a": 1}}, storage_writer=writer, no_dist=True)
    manifest = import_megatron(tmp_path / "dist", tmp_path / "back", ImportOptions())
    assert manifest == read_manifest(tmp_path / "combined")


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch hostile",)


def test_hostile_pickles_are_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_combined(tmp_path)
    export_torch_dist(tmp_path / "combined", tmp_path / "dist")
    path = tmp_path / "dist" / ITERATION / ".metadata"
    good = path.read_bytes()
    path.write_bytes(pickle.dumps(Hostile()))
    refused(tmp_path / "dist", r"would run or build posix\.system")
    described = pickle.loads(good)
    described.planner_data = Hostile()
    path.write_bytes(pickle.dumps(described))
    refused(tmp_path / "dist", r"would run or build posix\.system")
    path.write_bytes(good)
    torch.save({"args": Hostile()}, tmp_path / "dist" / ITERATION / "common.pt")
    refused(tmp_path / "dist", r"would run or build posix\.system")
    assert not (tmp_path / "hostile").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: (d / ".metadata").write_bytes(b"\x80\x04"), "can't be read"),
        (lambda d: (d / ".metadata").unlink(), "metadata is missing"),
        (lambda d: (d / "common.pt").unlink(), "common.pt is missing"),
        (lambda d: (d / "__0_0.distcp").unlink(), "__0_0.distcp is missing"),
        (lambda d: (d / "__1_3.distcp").write_bytes(b"x" * 50), "is cut short"),
        (lambda d: (d / "metadata.json").write_text('{"sharded_backend": "zarr"}'), "is of 'zarr'"),
    ],
)
def test_damage_is_one_sentence(tmp_path, change, complaint):
    build_combined(tmp_path)
    export_torch_dist(tmp_path / "combined", tmp_path / "dist")
    change(tmp_path / "dist" / ITERATION)
    refused(tmp_path / "dist", complaint)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"relative_path": "../__0_0.distcp"}, "outside of it: refused"),
        ({"offset": 7}, "not a whole checkpoint|cut short|can't be read"),
        ({"length": 1 << 40}, "is cut short"),
    ],
)
def test_places_that_cannot_be(tmp_path, change, complaint):
    build_combined(tmp_path)
    export_torch_dist(tmp_path / "combined", tmp_path / "dist")
    path = tmp_path / "dist" / ITERATION / ".metadata"
    described = pickle.loads(path.read_bytes())
    for info in described.storage_data.values():
        vars(info).update(change)
    path.write_bytes(pickle.dumps(described))
    refused(tmp_path / "dist", complaint)


def test_an_altered_byte_is_found(tmp_path):
    build_combined(tmp_path)
    export_torch_dist(tmp_path / "combined", tmp_path / "dist")
    path = tmp_path / "dist" / ITERATION / "__1_5.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(tmp_path / "dist", "is altered|not a whole|is not what|can't be read")
