"""Training stages, looked at before they run; the command line that runs them in Megatron-LM."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf
from omegaconf.dictconfig import DictConfig

from nvlm.errors import UserError, run_command
from nvlm.train.params import TrainParams

if TYPE_CHECKING:
    from nvlm.train.planning.plan import Market

SECTIONS = ("train.pretrain_34b", "train.sft_34b", "train.pretrain_72b", "train.sft_72b")


def main() -> None:
    """Run one verb."""
    arguments = build_parser().parse_args()
    arguments.run(arguments)


def build_parser() -> argparse.ArgumentParser:
    """The command line. What a verb needs is imported when it runs, so that help is quick."""
    parser = argparse.ArgumentParser(prog="python -m nvlm.train", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    text = "memory, time and cost of each run, without GPUs or weights"
    plan = verbs.add_parser(
        "plan",
        help=text,
        description=f"{text[0].upper()}{text[1:]}. Plans the published models on the parameters "
        "of conf/ at scale=full (or node, card), or a checkpoint on those of params.yaml.",
    )
    plan.add_argument(
        "overrides",
        nargs="*",
        metavar="OVERRIDE",
        help="values of conf/ to change, such as scale=node or train.sft_72b.grid.shard=8",
    )
    plan.add_argument(
        "--params", metavar="SECTION", help="one training stage (default: the recipe's four)"
    )
    plan.add_argument(
        "--checkpoint", type=Path, help="plan this model on params.yaml, as src/train.py would"
    )
    plan.add_argument(
        "--card", default="h100", help="a100, h100, h200, b200 or rtx4090 (%(default)s)"
    )
    plan.add_argument("--memory-gib", type=float, help="of one card (default: the card's)")
    plan.add_argument("--gpus", type=int, help="of the grids to compare (default: the run's own)")
    plan.add_argument("--price", type=float, default=2.5, help="$ a GPU-hour (%(default)g)")
    plan.add_argument(
        "--rate",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another rate than src/nvlm/train/planning/cost.py assumes, such as products=0.6",
    )
    plan.set_defaults(run=_plan)
    text = "a stage as a script for Megatron-LM's own examples/multimodal/train.py"
    megatron = verbs.add_parser(
        "megatron-command",
        help=text,
        description=f"{text[0].upper()}{text[1:]}: docs/megatron.md. Reads conf/ at scale=full.",
    )
    megatron.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="values of conf/ to change"
    )
    megatron.add_argument("--stage", required=True, help="such as sft_72b")
    megatron.add_argument("--gpus-per-node", type=int, default=8, help="of a node (%(default)d)")
    megatron.set_defaults(run=_megatron_command)
    text = "what runs that have not ended left in .resume"
    snapshots = verbs.add_parser("snapshots", help=text, description=text)
    snapshots.add_argument(
        "--remove", metavar="NAME", action="append", default=[], help="a run whose state may go"
    )
    snapshots.set_defaults(run=_snapshots)
    return parser


def _snapshots(arguments: argparse.Namespace) -> None:
    from nvlm.train.runs import RESUME, remove, table

    for name in arguments.remove:
        remove(RESUME / name)
    print(table())


def _megatron_command(arguments: argparse.Namespace) -> None:
    from nvlm.train.megatron.command import read_stage, script

    stage = read_stage(arguments.stage, arguments.overrides)
    print(script(stage, Path.cwd(), arguments.gpus_per_node), end="")


def _market(arguments: argparse.Namespace) -> Market:
    from nvlm.params import parse_params
    from nvlm.train.planning.cost import CARDS, Rates
    from nvlm.train.planning.plan import Market

    if arguments.card not in CARDS:
        raise UserError(f"--card {arguments.card}: should be one of {', '.join(CARDS)}")
    given = dict(rate.partition("=")[::2] for rate in arguments.rate)
    card = CARDS[arguments.card]
    if arguments.memory_gib is not None:
        card = replace(card, memory_gib=arguments.memory_gib)
    rates = parse_params(given, Rates, "--rate")
    return Market(card=card, rates=rates, price=arguments.price)


def _plan(arguments: argparse.Namespace) -> None:
    memory = arguments.memory_gib
    if (memory is not None and memory <= 0) or (arguments.gpus is not None and arguments.gpus < 1):
        raise UserError("--memory-gib should be more than 0, and --gpus 1 or more")
    if arguments.checkpoint is not None:
        _plan_checkpoint(arguments)
    else:
        _plan_published(arguments)


def _sections(arguments: argparse.Namespace) -> tuple[str, ...]:
    return SECTIONS if arguments.params is None else (arguments.params,)


def _plan_checkpoint(arguments: argparse.Namespace) -> None:
    from nvlm.checkpoint.format.manifest import read_manifest
    from nvlm.params import load_params
    from nvlm.train.checks import check_run
    from nvlm.train.planning.plan import describe, plan_run

    memory = _market(arguments).card.memory_gib
    if arguments.overrides:
        raise UserError("with --checkpoint the values are params.yaml's: leave overrides out")
    manifest = read_manifest(arguments.checkpoint)
    for section in _sections(arguments):
        params = load_params(section, TrainParams)
        check_run(params, arguments.checkpoint)
        assert manifest.vocabulary is not None
        plan = plan_run(params, manifest.architecture, manifest.vocabulary.padded)
        print(f"{section} from {arguments.checkpoint}\n{describe(plan, memory)}\n")


def _plan_published(arguments: argparse.Namespace) -> None:
    from nvlm.checkpoint.format.layout import padded_rows
    from nvlm.checkpoint.format.published import SCALES
    from nvlm.params import composed, parse_params
    from nvlm.train.planning.cost import evaluation_hours
    from nvlm.train.planning.plan import (
        ADAPTED,
        ADAPTED_GPUS,
        describe,
        describe_grids,
        describe_time,
        plan_grids,
        plan_run,
        rounded,
    )

    market = _market(arguments)
    memory = market.card.memory_gib

    chosen = any(override.startswith("scale=") for override in arguments.overrides)
    values = OmegaConf.create(composed([*([] if chosen else ["scale=full"]), *arguments.overrides]))
    if values.scale not in SCALES:
        raise UserError(
            f"scale={values.scale} has no published models (but {', '.join(SCALES)}): plan a "
            "checkpoint of it, with --checkpoint"
        )
    published = SCALES[values.scale]
    for section in _sections(arguments):
        branch = section.rpartition("_")[2]
        content = OmegaConf.select(values, section)
        if branch not in published or not isinstance(content, DictConfig):
            raise UserError(f"--params {section}: should be of {', '.join(SECTIONS)}")
        params = parse_params(content, TrainParams, section)
        architecture = published[branch]
        assert architecture.language
        multiple: int = values.model[f"lm_{branch}"].make_vocabulary_divisible_by
        padded = padded_rows(
            architecture.language.vocabulary, multiple=multiple, tensor=params.grid.tensor
        )
        plan = plan_run(params, architecture, padded)
        gpus = arguments.gpus or params.grid.processes
        grids = plan_grids(params, architecture, multiple, gpus)
        print(f"{section}\n{describe(plan, memory)}")
        print(describe_time(plan, architecture, market))
        ranked = describe_grids(grids, architecture, market)
        print(f"grids of {gpus} GPUs, on counted work and assumed rates:\n{ranked}\n")
        if section.startswith("train.sft"):
            if params.lora is None:
                gpus, adapted = ADAPTED_GPUS[branch], replace(params, lora=ADAPTED)
                grids = plan_grids(adapted, architecture, multiple, gpus)
                ranked = describe_grids(grids, architecture, market)
                print(
                    f"the same with low-rank adaptation, rank {ADAPTED.rank} on all layers, grids "
                    f"of {gpus} GPUs:\n{ranked}\n"
                )
            tensor, batch = params.grid.tensor, int(values.eval.run.batch_size)
            hours = evaluation_hours(
                architecture,
                market.card,
                market.rates,
                tensor=tensor,
                batch=batch,
                tasks=values.data.eval,
            )
            print(
                f"evaluation of the {branch}, expected: {rounded(hours)} hours on {tensor} GPUs, "
                f"{rounded(hours * tensor)} GPU-hours, {hours * tensor * market.price:,.0f} $\n"
            )


if __name__ == "__main__":
    run_command(main)
