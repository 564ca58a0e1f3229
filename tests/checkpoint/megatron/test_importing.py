"""Megatron's files come in whole or not at all, and nothing in them is run."""

import argparse
import enum
import io
import os
import pickle
import random
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from tests.checkpoint.build import PROJECTOR, build_combined
from tests.checkpoint.megatron.stand_in import FILE, edit, refused

from nvlm.checkpoint.format.manifest import check_digests, read_manifest
from nvlm.checkpoint.megatron.exporting import export_megatron
from nvlm.checkpoint.megatron.importing import ImportOptions, import_megatron
from nvlm.checkpoint.megatron.pt_reader import PtFile
from nvlm.checkpoint.relayout.reshard import reshard
from nvlm.errors import UserError


@pytest.fixture
def exported(tmp_path):
    build_combined(tmp_path)
    export_megatron(tmp_path / "combined", tmp_path / "megatron")
    return tmp_path / "megatron"


@pytest.fixture
def megatron_enums(monkeypatch):
    """Enums that a real file's ``args`` hold, importable while the file is written only."""

    class ModelType(enum.Enum):
        encoder_or_decoder = 1

    class AttnBackend(enum.Enum):
        auto = 5

    package = {name: types.ModuleType(name) for name in ("megatron", "megatron.core")}
    package["megatron.core.enums"] = types.ModuleType("megatron.core.enums")
    for kind in (ModelType, AttnBackend):
        kind.__module__, kind.__qualname__ = "megatron.core.enums", kind.__name__
        setattr(package["megatron.core.enums"], kind.__name__, kind)
    with monkeypatch.context() as patch:
        for name, module in package.items():
            patch.setitem(sys.modules, name, module)
        yield {"model_type": ModelType.encoder_or_decoder, "attention_backend": AttnBackend.auto}


@pytest.mark.parametrize(
    ("stages", "tower", "tied"),
    [
        ((4,), "6B", False),
        ((1, 3), "300M", False),
        ((1, 1, 1, 1), "6B", True),
        ((4,), "300M", True),
    ],
)
def test_what_went_out_comes_back(tmp_path, stages, tower, tied):
    build_combined(tmp_path, tower=tower, tied=tied)
    reshard(tmp_path / "combined", tmp_path / "laid_out", layers_per_stage=stages)
    export_megatron(tmp_path / "laid_out", tmp_path / "megatron")
    manifest = import_megatron(tmp_path / "megatron", tmp_path / "back", ImportOptions())
    assert manifest == read_manifest(tmp_path / "laid_out")
    check_digests(tmp_path / "back", manifest)


def test_copies_of_tied_embeddings_that_differ_are_refused(tmp_path):
    build_combined(tmp_path, tied=True)
    reshard(tmp_path / "combined", tmp_path / "split", pipeline=2)
    export_megatron(tmp_path / "split", tmp_path / "megatron")
    last = "iter_0000001/mp_rank_01_001/model_optim_rng.pt"
    head = "language_model.output_layer.weight"
    edit(tmp_path / "megatron", lambda content: content["model"][head][3].zero_(), last)
    refused(tmp_path / "megatron", "output_layer.weight is not .*000.*to which args tie it")
    edit(tmp_path / "megatron", lambda content: content["model"].pop(head), last)
    import_megatron(tmp_path / "megatron", tmp_path / "back", ImportOptions())


def test_a_trained_file_of_megatrons_own(exported, megatron_enums):
    """Saved by torch, with enums, dtypes, optimizer, random states and parameters in it."""

    def as_trained(content):
        args = content["args"]
        del args.nvlm, args.vocab_size
        vars(args).update(megatron_enums, main_params_dtype=torch.float32, extra={1, 2})
        state = {"random": random.getstate(), "np": np.random.get_state()}
        content["rng_state"] = [state | {"torch": torch.get_rng_state()}]
        content["optimizer"] = {"param_groups": [{"lr": 1e-4}], "state": {0: torch.ones(3)}}
        content["opt_param_scheduler"] = {"num_steps": np.int64(3)}
        for name, value in content["model"].items():
            if name.endswith("_extra_state"):
                content["model"][name] = io.BytesIO(b"fp8")
            elif "linear_fc2.weight" in name:
                content["model"][name] = torch.nn.Parameter(value)

    for rank in ("00", "01"):
        edit(exported, as_trained, f"iter_0000001/mp_rank_{rank}/model_optim_rng.pt")
    args = PtFile(exported / FILE).content["args"]
    assert args.model_type == "ModelType(1)"
    assert args.attention_backend == "AttnBackend(5)"
    assert args.params_dtype == "torch.bfloat16"
    manifest = import_megatron(exported, exported.parent / "out", ImportOptions(vocabulary=101))
    expected = read_manifest(exported.parent / "combined")
    assert manifest.files == expected.files
    assert manifest.architecture == expected.architecture
    assert [source.revision for source in manifest.sources] == ["iteration 1"] * 2


def test_local_layer_spec_and_upstreams_missing_projector(exported):
    def change(content):
        model = content["model"]
        for name in list(model):
            if name.startswith("vision_projection"):
                del model[name]
            elif name.startswith("language_model") and name.endswith(
                "linear_qkv.layer_norm_weight"
            ):
                layer = name.split(".self_attention")[0]
                model[f"{layer}.input_layernorm.weight"] = model.pop(name)

    for rank in ("00", "01"):
        edit(exported, change, f"iter_0000001/mp_rank_{rank}/model_optim_rng.pt")
    refused(exported, "has no vision_projection: draw a fresh one with --fresh-projector")
    manifest = import_megatron(
        exported, exported.parent / "out", ImportOptions(projector=PROJECTOR)
    )
    assert manifest.files == read_manifest(exported.parent / "combined").files


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        (Runs(os.system, "touch {}"), r"run or build posix\.system"),
        (Runs(eval, "1"), r"run or build (builtins|__builtin__)\.eval"),
        (Runs(pickle.loads, b""), r"run or build _?pickle\.loads"),
        (Runs(types.SimpleNamespace), r"run or build types\.SimpleNamespace"),
        (Runs(torch.load, "x.pt"), r"run or build torch\.serialization\.load"),
    ],
)
@pytest.mark.parametrize("key", ["args", "somewhere"])
def test_pickled_code_is_refused_by_name_and_never_run(exported, what, complaint, key):
    trace = exported.parent / "trace"
    if what.call[1] == ("touch {}",):
        what = Runs(os.system, f"touch {trace}")
    edit(exported, lambda content: content.update({key: what}))
    refused(exported, complaint)
    assert not trace.exists()


def test_getattr_reaches_enums_only(tmp_path):
    payload = b"\x80\x02c__builtin__\ngetattr\nc__builtin__\nstr\nX\x06\x00\x00\x00format\x86R."
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", payload)
    with pytest.raises(UserError, match="is no enum's member"):
        PtFile(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda m: m.pop("vision_model.class_token"),
            r"mp_rank_01.* lacks vision_model\.class_tok",
        ),
        (lambda m: m.update(x=torch.ones(2).bfloat16()), "unexpected tensor"),
        (lambda m: m.update({"vision_model.ls": 3}), r"vision_model\.ls is not a tensor"),
        (
            lambda m: m.update({"language_model.output_layer.weight": torch.ones(3, 3).bfloat16()}),
            r"output_layer\.weight has shape \[3, 3\], not \[56, 32\]",
        ),
        (
            lambda m: m.update({"vision_model.class_token": torch.full((1, 1, 24), 0.1)}),
            r"class_token is of torch\.float32 beside torch\.bfloat16, which would round it",
        ),
        (
            lambda m: m.update({"vision_model.class_token": torch.ones(1, 1, 24).double()}),
            r"class_token is of float64, not of one of float32",
        ),
        (
            lambda m: m.pop("language_model.decoder.final_layernorm.weight"),
            "lacks .*final_layernorm",
        ),
    ],
)
def test_tensors_that_are_not_right(exported, change, complaint):
    edit(exported, lambda content: change(content["model"]))
    refused(exported, complaint)


def test_layers_that_were_lost_on_the_way(exported):
    """Upstream's split with a list that sums short."""

    def drop(content):
        for name in list(content["model"]):
            if ".decoder.layers.3." in name and name.startswith("language"):
                del content["model"][name]

    for rank in ("00", "01"):
        edit(exported, drop, f"iter_0000001/mp_rank_{rank}/model_optim_rng.pt")
    refused(exported, "args.num_layers is 4, and the stages hold 3")


def test_files_that_are_damaged(exported):
    path = exported / FILE
    data = bytearray(path.read_bytes())
    altered = bytearray(data)
    altered[len(data) // 2] ^= 1
    path.write_bytes(altered)
    refused(exported, "mp_rank_01.*is altered")
    path.write_bytes(data[: len(data) // 2])
    refused(exported, "mp_rank_01.* is not a whole checkpoint")
    path.unlink()
    refused(exported, "mp_rank_01.* is missing")
    path.parent.rename(path.parent.with_name("mp_rank_02"))
    refused(exported, "lacks tensor rank 1 of pipeline rank 0")


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path):
    torch.save({"x": torch.ones(4)}, tmp_path / "x.pt")
    file = PtFile(tmp_path / "x.pt")
    entry = file.content["x"]
    for change in ({"shape": (5,)}, {"offset": 1}, {"stride": (2,)}, {"offset": -1}):
        with pytest.raises(UserError, match="reaches beyond"):
            file.read([type(entry)(**{**vars(entry), **change})])
    assert torch.equal(file.read([entry])[0], torch.ones(4))


def test_release_and_iterations(exported):
    latest = exported / "latest_checkpointed_iteration.txt"
    (exported / "iter_0000001").rename(exported / "release")
    refused(exported, "has neither mp_rank_TT")
    latest.write_text("release\n")
    import_megatron(exported, exported.parent / "one", ImportOptions())
    latest.write_text("../..")
    refused(exported, "not a number")
    options = ImportOptions(rope_theta=1e6, tokenizer=exported / "tokenizer")
    manifest = import_megatron(exported / "release", exported.parent / "two", options)
    assert manifest.architecture.language is not None
    assert manifest.architecture.language.rope_theta == 1e6
    assert "tokenizer/tokenizer.json" in manifest.files


def test_args_of_another_model(exported):
    edit(
        exported,
        lambda content: setattr(content["args"], "normalization", "LayerNorm"),
        "iter_0000001/mp_rank_00/model_optim_rng.pt",
    )
    refused(exported, "args.normalization is 'LayerNorm'")


def test_namespace_of_the_process_is_left_alone(tmp_path):
    """State that a file sets on a class must not outlive the file."""
    payload = b"\x80\x02cargparse\nNamespace\n}X\x05\x00\x00\x00stainK\x01sb."
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", payload)
    with pytest.raises(UserError):
        PtFile(tmp_path / "x.pt")
    assert not hasattr(argparse.Namespace, "stain")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda c: c.update(args=3), "args is no Namespace"),
        (lambda c: c.update(model=[]), "has no model"),
        (lambda c: c.update(model0=c.pop("model")), "virtual pipeline stages"),
        (lambda c: setattr(c["args"], "hidden_size", "wide"), "args.hidden_size is 'wide'"),
        (lambda c: setattr(c["args"], "kv_channels", "wide"), "heads of 'wide' channels"),
        (
            lambda c: delattr(c["args"], "untie_embeddings_and_output_weights"),
            "untie_embeddings_and_output_weights is None, not true or false",
        ),
        (lambda c: setattr(c["args"], "vocab_size", 113), "113 rows are not among its 112"),
        (lambda c: setattr(c["args"], "nvlm", {"sources": [{"x": 1}]}), "sources is altered"),
    ],
)
def test_content_that_is_not_megatrons(exported, change, complaint):
    edit(exported, change, "iter_0000001/mp_rank_00/model_optim_rng.pt")
    refused(exported, complaint)
