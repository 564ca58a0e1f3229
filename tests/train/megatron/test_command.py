"""The command for Megatron-LM, held against the flags of its own parser at the pinned revision."""

import argparse
import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nvlm.checkpoint.format.published import QWEN2_72B, YI_34B
from nvlm.checkpoint.megatron.args import language_from_args
from nvlm.data.loading.params import LoaderParams
from nvlm.errors import UserError
from nvlm.train.__main__ import main
from nvlm.train.megatron.flags import REVISION
from nvlm.train.megatron.patches import PATCHES
from nvlm.train.params import TrainParams

UPSTREAM = Path(__file__).with_name("upstream_flags.txt").read_text()
PAGE = Path("docs/megatron.md").read_text()
# Every flag that any stage can have, between them.
PRETRAIN = "train.pretrain_34b.data.template=chatml train.pretrain_34b.micro_batch=1"
VARIANTS = (
    "--stage sft_72b train.sft_72b.recompute_every=3 train.sft_72b.tensorboard=true",
    "--stage sft_34b train.sft_34b.deterministic=true train.sft_34b.grid.replicate=2"
    " train.sft_34b.grid.shard=8",
    f"--stage pretrain_34b {PRETRAIN} train.pretrain_34b.data.packing=true"
    " train.pretrain_34b.sequence_parallel=false",
)


@pytest.fixture
def printed(monkeypatch, capsys):
    def call(words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["nvlm.train", "megatron-command", *words.split()])
        main()
        return capsys.readouterr().out

    return call


def upstream_parser() -> argparse.ArgumentParser:
    """A parser of upstream's names, strict as its own (no abbreviations)."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for name in re.findall("^--.*", UPSTREAM, re.MULTILINE):
        if name.endswith("="):
            parser.add_argument(name[:-1])
        else:
            parser.add_argument(name, action="store_true")
    return parser


def words_of(script: str) -> list[str]:
    """What follows train.py on the command line."""
    words = shlex.split(script[script.index("torchrun") :].replace("\\\n", ""))
    return words[words.index("$MEGATRON/examples/multimodal/train.py") + 1 :]


def flags_of(script: str) -> set[str]:
    return {word for word in words_of(script) if word.startswith("--")}


def test_the_list_of_flags_is_of_the_pinned_revision():
    assert REVISION in UPSTREAM and REVISION in PAGE
    assert len(re.findall("^--", UPSTREAM, re.MULTILINE)) > 900


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_flag_is_upstreams_and_has_a_value_where_upstream_wants_one(printed, variant):
    script = printed(variant)
    assert REVISION in script
    words = words_of(script)
    parsed, unknown = upstream_parser().parse_known_args(words)
    assert not unknown
    assert len(flags_of(script)) == len([word for word in words if word.startswith("--")])
    assert parsed.language_model_type in {"yi-34b", "qwen2.0_72B"}


def test_the_page_has_every_flag_and_no_other(printed):
    flags = set.union(*(flags_of(printed(variant)) for variant in VARIANTS))
    rows = re.findall(r"^\| (`--.*?) \|", PAGE, re.MULTILINE)
    told = {flag for row in rows for flag in re.findall(r"`(--[\w-]+)", row)}
    assert told == flags


def test_the_page_says_where_every_parameter_went():
    for cls, prefix in ((TrainParams, ""), (LoaderParams, "data.")):
        for field in dataclasses.fields(cls):
            if field.name not in {"grid", "data"}:
                assert f"`{prefix}{field.name}`" in PAGE, field.name


def test_the_recipes_values_arrive(printed):
    """Table 11 of the paper and Qwen2-72B's shape, as upstream's script says them."""
    script = printed("--stage sft_72b")
    parsed = upstream_parser().parse_args(words_of(script))
    for name, value in (
        ("lr", 2e-6),
        ("min_lr", 2.5e-7),
        ("adam_beta1", 0.9),
        ("adam_beta2", 0.98),
        ("weight_decay", 0.1),
        ("attention_dropout", 0),
        ("micro_batch_size", 1),
        ("seed", 1234),
        ("save_interval", 200),
        ("num_workers", 8),
        ("train_iters", 40_000),
        ("lr_decay_iters", 40_000),
        ("lr_warmup_iters", 1000),
        ("global_batch_size", 128),
        ("clip_grad", 10),
        ("tensor_model_parallel_size", 8),
        ("pipeline_model_parallel_size", 4),
        ("num_layers", 80),
        ("hidden_size", 8192),
        ("num_attention_heads", 64),
        ("num_query_groups", 8),
        ("img_h", 448),
        ("patch_dim", 14),
        ("ffn_hidden_size", 29568),
        ("rotary_base", 1_000_000),
        ("norm_epsilon", 1e-6),
        ("padded_vocab_size", 152_576),
        ("seq_length", 261),
        ("decoder_seq_length", 3200),
        ("max_num_tiles", 6),
    ):
        assert float(getattr(parsed, name)) == value, name
    for name in ("use_thumbnail", "use_tile_tags", "add_qkv_bias", "freeze_ViT", "bf16", "swiglu"):
        assert getattr(parsed, name) is True, name
    assert parsed.freeze_LM is False
    assert parsed.data_path == "$NVLM/data/blends/72b/sft.yaml"
    assert "--nproc-per-node 8" in script and "--nnodes 16" in script
    assert "export-megatron checkpoints/72b/pretrained_split " in script
    assert "--vocabulary 152064" in script


@pytest.mark.parametrize(("stage", "decoder"), [("sft_72b", QWEN2_72B), ("sft_34b", YI_34B)])
def test_what_megatron_then_saves_comes_back_as_the_same_decoder(printed, stage, decoder):
    """Its args are those of the command line, two under other names, and import-megatron reads
    the decoder off them."""
    parsed = vars(upstream_parser().parse_args(words_of(printed(f"--stage {stage}"))))
    args = {name: _number(value) for name, value in parsed.items()}
    args["add_bias_linear"] = not args.pop("disable_bias_linear")
    args["layernorm_epsilon"] = args.pop("norm_epsilon")
    back = language_from_args(
        args,
        Path("saved"),
        layers=decoder.layers,
        qkv_bias=args["add_qkv_bias"],
        vocabulary=decoder.vocabulary,
    )
    assert back == decoder


def _number(value: str | bool | None) -> str | bool | float | None:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def test_pretraining_freezes_the_decoder_and_has_one_tile(printed):
    flags = flags_of(printed(VARIANTS[2]))
    assert "--freeze-LM" in flags and "--packing-buffer-size" in flags
    assert not flags & {"--use-tiling", "--use-thumbnail", "--use-tile-tags", "--sequence-parallel"}


def test_patches_are_those_that_the_stage_needs(printed):
    first = printed("--stage sft_72b")
    other = printed("--stage sft_34b train.sft_34b.data.shuffle_buffer=7")
    for patch in PATCHES:
        assert f"| `{patch.file}` |" in PAGE
    for text, here, there in (
        ("pretrain_cfg_container_from_args", True, True),
        ("nvlm-yi-34b", False, True),
        ("layernorm_epsilon", True, False),
        ("before imgs becomes None", True, False),
        ("shuffle_buffer_size", False, True),
    ):
        comments = [script[: script.index("set -euo")] for script in (first, other)]
        assert [text in comment for comment in comments] == [here, there], text


def test_recomputation_and_data_parallelism_are_said_in_megatrons_words(printed):
    """Every third of a stage's 20 layers is 7; 2 copies, each sharded over 8 ranks."""
    parsed = upstream_parser().parse_args(words_of(printed(VARIANTS[0])))
    recomputed = (parsed.recompute_granularity, parsed.recompute_method)
    assert (*recomputed, parsed.recompute_num_layers) == ("full", "block", "7")
    parsed = upstream_parser().parse_args(words_of(printed(VARIANTS[1])))
    assert parsed.use_distributed_optimizer is True
    assert parsed.num_distributed_optimizer_instances == "2"
    whole = printed("--stage sft_72b train.sft_72b.recompute_every=1 train.sft_72b.grid.shard=1")
    parsed = upstream_parser().parse_args(words_of(whole))
    assert (parsed.recompute_method, parsed.recompute_num_layers) == ("uniform", "1")
    assert parsed.use_distributed_optimizer is False and "--nnodes 4" in whole


def test_bash_hands_train_py_the_words(printed, tmp_path):
    """The script is bash: a stand-in for torchrun sees each word, paths put in."""
    script = printed("--stage sft_72b")
    stub = tmp_path / "torchrun"
    stub.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    environment = {
        **{"PATH": f"{tmp_path}:/usr/bin:/bin", "MEGATRON": "/a place"},
        **{"NODE_RANK": "0", "MASTER_ADDR": "host", "MASTER_PORT": "1"},
    }
    ran = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    words = ran.stdout.splitlines()
    assert "/a place/examples/multimodal/train.py" in words
    assert words[words.index("--data-path") + 1] == f"{Path.cwd()}/data/blends/72b/sft.yaml"
    del environment["MEGATRON"]
    assert subprocess.run(
        ["bash", "-c", script], check=False, env=environment, capture_output=True
    ).returncode


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--stage sft", "--stage sft: should be one of pretrain_34b"),
        ("--stage pretrain_72b", "train.pretrain_72b.data.template: plain"),
        ("--stage sft_72b train.sft_72b.turn_weighting=square_root", "turn_weighting: square_root"),
        ("--stage sft_72b train.sft_72b.dtype=float32", "dtype: float32"),
        ("--stage sft_72b train.sft_72b.data.packing=true", "data.packing: True"),
        ("--stage sft_72b train.sft_72b.micro_batch=2", "micro_batch: 2"),
        ("--stage sft_72b train.sft_72b.trainable=[language_model]", "name vision_projection"),
        ("--stage sft_72b train.sft_72b.data.max_tiles=10", "data.max_tiles: 10"),
        (
            "--stage sft_72b train.sft_72b.lora={rank:8,alpha:16,dropout:0.0,targets:[q_proj]}",
            "it trains no adapters: say null",
        ),
        ("--stage sft_72b scale=smoke", "scale=smoke has no published model"),
        ("--stage sft_72b train.sft_72b.grid.pipeline=3", "does not divide the decoder's 80"),
        ("--stage sft_72b --gpus-per-node 7", "--gpus-per-node 7: should divide the 128 ranks"),
    ],
)
def test_what_megatron_cannot_do_is_one_sentence(printed, words, message):
    with pytest.raises(UserError) as raised:
        printed(words)
    assert message in str(raised.value) and "\n" not in str(raised.value)
