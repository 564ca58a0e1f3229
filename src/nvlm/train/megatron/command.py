"""The script that trains a stage with Megatron-LM: export, torchrun, import."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.dictconfig import DictConfig

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.checkpoint.format.layout import padded_rows
from nvlm.checkpoint.format.published import SCALES
from nvlm.errors import UserError
from nvlm.params import composed, parse_params
from nvlm.train.megatron.flags import (
    REVISION,
    Flags,
    check_supported,
    decoder_of,
    stage_flags,
)
from nvlm.train.megatron.patches import patches_for
from nvlm.train.params import TrainParams

STAGES = ("pretrain_34b", "sft_34b", "pretrain_72b", "sft_72b")
PROMPTS = "examples/multimodal/nvlm/nvlm_prompts.json"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training stage of the recipe, its model, and where it starts from."""

    name: str  # such as sft_72b
    params: TrainParams
    architecture: Architecture
    padded: int  # rows of the embedding
    source: str  # checkpoint that it starts from, relative to the repository

    @property
    def branch(self) -> str:
        """34b or 72b."""
        return self.name.rpartition("_")[2]

    @property
    def kind(self) -> str:
        """Pretrain or sft, as the blend's file is named."""
        return self.name.rpartition("_")[0]


def read_stage(name: str, overrides: Sequence[str]) -> Stage:
    """Stage ``name`` of conf/ at scale=full, or another that ``overrides`` choose.

    Raises UserError for an unknown stage or value, and for what Megatron-LM cannot follow.
    """
    if name not in STAGES:
        raise UserError(f"--stage {name}: should be one of {', '.join(STAGES)}")
    chosen = any(override.startswith("scale=") for override in overrides)
    values = OmegaConf.create(composed([*([] if chosen else ["scale=full"]), *overrides]))
    kind, _, branch = name.rpartition("_")
    where = f"train.{name}"
    content = OmegaConf.select(values, where)
    if values.scale not in SCALES or branch not in SCALES[values.scale]:
        raise UserError(
            f"scale={values.scale} has no published model for {name}, which is what Megatron-LM's "
            "example knows: take scale=full"
        )
    assert isinstance(content, DictConfig)
    params = parse_params(content, TrainParams, where)
    check_supported(params, where)
    architecture = SCALES[values.scale][branch]
    assert architecture.language is not None
    multiple: int = values.model[f"lm_{branch}"].make_vocabulary_divisible_by
    bound = OmegaConf.load(f"stages/{branch}.yaml")
    assert isinstance(bound, DictConfig)
    return Stage(
        name=name,
        params=params,
        architecture=architecture,
        padded=padded_rows(
            architecture.language.vocabulary, multiple=multiple, tensor=params.grid.tensor
        ),
        source=bound.sft_source if kind == "sft" else f"checkpoints/{branch}/combined",
    )


def script(stage: Stage, root: Path, gpus_per_node: int) -> str:
    """The bash script that trains ``stage`` of the repository ``root``, run once a node.

    Raises UserError where the grid does not fill nodes of ``gpus_per_node``.
    """
    assert stage.architecture.language is not None
    decoder = decoder_of(stage.architecture.language)
    processes = stage.params.grid.processes
    per_node = min(gpus_per_node, processes)
    if per_node < 1 or processes % per_node:
        raise UserError(
            f"--gpus-per-node {gpus_per_node}: should divide the {processes} ranks of the grid"
        )
    rows = stage.architecture.language.vocabulary
    home = f"checkpoints/{stage.branch}/megatron_{stage.kind}"
    start, saved = f"{home}/start", f"{home}/saved"
    paths: Flags = {
        "--pretrained-checkpoint": f'"$NVLM/{start}"',
        "--load": f'"$NVLM/{saved}"',
        "--save": f'"$NVLM/{saved}"',
        "--dataloader-save": f'"$NVLM/{saved}/dataloader"',
        "--tokenizer-type": "MultimodalTokenizer",
        "--tokenizer-model": f'"$NVLM/{start}/tokenizer"',
        "--tokenizer-prompt-format": decoder.prompt_format,
        "--data-path": f'"$NVLM/data/blends/{stage.branch}/{stage.kind}.yaml"',
        "--prompt-path": f'"$MEGATRON/{PROMPTS}"',
    }
    if stage.params.tensorboard:
        paths["--tensorboard-dir"] = f'"$NVLM/logs/{stage.branch}/megatron_{stage.kind}"'
    flags = paths | stage_flags(stage.params, stage.architecture, stage.padded)
    torchrun = [f"--nproc-per-node {per_node}", f"--nnodes {processes // per_node}"]
    if processes > per_node:
        torchrun.append(
            '--node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT"'
        )
    words = [flag if value is None else f"{flag} {value}" for flag, value in flags.items()]
    lines = [*torchrun, '"$MEGATRON/examples/multimodal/train.py"', *words]
    return "\n".join([
        "#!/bin/bash",
        f"# {stage.name} in Megatron-LM at {REVISION}: docs/megatron.md.",
        *_patch_lines(stage),
        "# Before, once:",
        f"#   python -m nvlm.checkpoint export-megatron {stage.source} {start}",
        "# Afterwards, once:",
        f"#   python -m nvlm.checkpoint import-megatron {saved} {home}/back \\",
        f"#     --vocabulary {rows} --tokenizer {start}/tokenizer",
        "set -euo pipefail",
        f"NVLM={shlex.quote(str(root))}",
        ': "${MEGATRON:?the directory of Megatron-LM, patched as above}"',
        'export PYTHONPATH="$MEGATRON:$NVLM/src${PYTHONPATH:+:$PYTHONPATH}"',
        "export CUDA_DEVICE_MAX_CONNECTIONS=1 NVTE_APPLY_QK_LAYER_SCALING=0",
        "export TOKENIZERS_PARALLELISM=false",
        "torchrun \\",
        " \\\n".join(f"  {line}" for line in lines),
        "",
    ])  # fmt: skip


def _patch_lines(stage: Stage) -> list[str]:
    assert stage.architecture.language is not None
    lines = ["# To be patched there first:"]
    for patch in patches_for(stage.params, stage.architecture.language):
        lines += [f"# - {patch.file}: {patch.change}", f"#     ({patch.reason})"]
    return lines
