"""Task 9: answer the questions of one task with a checkpoint, on the grid it is laid out for.

Run with: python src/generate.py --params eval.generate --task TextVQA \
    --checkpoint checkpoints/72b/sft --data data/eval/TextVQA \
    --out data/generated/72b/sft/TextVQA.jsonl

A run that was stopped goes on where it was, and one whose answers are all there (answer_ahead) has
nothing to start. With --server URL a server with OpenAI's interface
answers, such as one that serves an export of the checkpoint.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from nvlm.checkpoint.format.manifest import MANIFEST
from nvlm.errors import run_command
from nvlm.evaluate.answering.worker import Asking, work
from nvlm.evaluate.params import GenerateParams, RunParams, TaskParams
from nvlm.launch.failure import told_once
from nvlm.launch.stage import LaunchParams, launch_stage
from nvlm.parallel.grid import GridParams
from nvlm.params import load_params, section_keys


def main() -> None:
    """Read the arguments; ask a server, or start one process a tensor-parallel rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--params", required=True, help="section of params.yaml: eval.generate")
    parser.add_argument("--task", required=True, help="a task of eval.tasks in params.yaml")
    parser.add_argument("--checkpoint", type=Path, required=True, help="model to ask")
    parser.add_argument("--data", type=Path, required=True, help="directory of the ground truth")
    parser.add_argument("--out", type=Path, required=True, help="answers to write (JSON lines)")
    parser.add_argument("--blank", action="store_true", help="show grey images: a baseline")
    parser.add_argument("--server", help="URL up to /v1 of a server that serves the checkpoint")
    arguments = parser.parse_args()

    params = load_params(arguments.params, GenerateParams)
    run = load_params("eval.run", RunParams)
    own = {"data": arguments.data, "out": arguments.out}
    asking = replace(asked(arguments, arguments.task), **own)
    questions = asking.questions()
    log = asking.log(params, questions)
    pending = log.pending(questions)
    if arguments.server:
        from nvlm.evaluate.answering.server import ask_server

        server, ask = arguments.server, asking.task.ask
        blank, write = arguments.blank, log.append
        ask_server(server, pending, ask, params, run, blank=blank, write=write)
    elif pending:
        tasks = section_keys("data.eval") if run.answer_ahead else []
        others = [asked(arguments, task) for task in tasks if task != arguments.task]
        tensor = asking.tensor_parallel()
        launch_stage(
            load_params("launch", LaunchParams),
            work,
            tensor,
            GridParams(tensor=tensor),
            params,
            run,
            asking,
            [other for other in others if other.is_awaited()],
            name=f"generate_{arguments.task}",
            inputs=[arguments.checkpoint / MANIFEST, *sorted(arguments.data.glob("*.*"))],
            imports="nvlm.evaluate.answering.generation",
            progress=lambda: -len(log.pending(questions)),
        )
        return
    log.write(arguments.out, questions)
    log.forget()


def asked(arguments: argparse.Namespace, task: str) -> Asking:
    """``task``, whose files lie beside those of the task in ``arguments``."""
    return Asking(
        task=load_params(f"eval.tasks.{task}", TaskParams),
        checkpoint=arguments.checkpoint,
        data=arguments.data.parent / task,
        out=arguments.out.with_name(f"{task}.jsonl"),
        blank=arguments.blank,
        server=arguments.server,
    )


if __name__ == "__main__":
    run_command(told_once(main))
