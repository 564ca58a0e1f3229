"""Compare two runs question by question, or hold scores against the published ones.

Run with: python -m nvlm.evaluate compare data/generated/72b/pretrained data/generated/72b/sft
or, after `dvc metrics diff`: python -m nvlm.evaluate compare HEAD:data/generated/72b/sft \
    data/generated/72b/sft
and: python -m nvlm.evaluate reproduce --variant sft --answers data/generated/72b/released
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nvlm.errors import UserError, run_command
from nvlm.evaluate.answering.answers import read_answers
from nvlm.evaluate.ground_truth.files import read_json
from nvlm.evaluate.ground_truth.readers import read_questions
from nvlm.evaluate.params import EvaluationParams, TaskParams
from nvlm.evaluate.reporting.compare import Comparison, compare, comparison_table
from nvlm.evaluate.reporting.reproduction import (
    difference_lines,
    judged_differently,
    reproduction,
    reproduction_table,
)
from nvlm.evaluate.reporting.scoring import metric_called
from nvlm.evaluate.reporting.table import RELEASED
from nvlm.params import load_params

RUN = "answers to one task (TASK.jsonl) or a directory of them; REVISION:PATH is taken from git"


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(prog="python -m nvlm.evaluate", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("compare", help="wins and losses of B against A")
    command.add_argument("first", metavar="A", help=RUN)
    command.add_argument("second", metavar="B", help=RUN)
    command.set_defaults(run=_compare)
    command = commands.add_parser("reproduce", help="pass, near or off, beside published scores")
    command.add_argument("--branch", default="72b", help="whose rows (default: 72b)")
    command.add_argument(
        "--variant", default=RELEASED, help="sft, pretrained or released (default: released)"
    )
    command.add_argument("--scores", type=Path, default=Path("reports/scores"))
    command.add_argument("--generated", type=Path, default=Path("data/generated"))
    command.add_argument(
        "--answers", metavar="STORED", help=f"of the released model, to judge beside ours: {RUN}"
    )
    command.set_defaults(run=_reproduce)
    for command in commands.choices.values():
        command.add_argument(
            "--data", type=Path, default=Path("data/eval"), help="directory of TASK directories"
        )
    arguments = parser.parse_args()
    arguments.run(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="nvlm-compare-") as scratch:
        first = answer_files(arguments.first, Path(scratch) / "first")
        second = answer_files(arguments.second, Path(scratch) / "second")
        tasks = sorted(first.keys() & second.keys())
        print(
            comparison_table(
                [_compared(task, first[task], second[task], arguments.data) for task in tasks]
            )
        )


def _reproduce(arguments: argparse.Namespace) -> None:
    params = load_params("eval", EvaluationParams)
    scores = arguments.scores / arguments.branch / arguments.variant
    found = []
    for task, task_params in params.tasks.items():
        report = scores / f"{task}.json"
        if task_params.published and report.is_file():
            published = task_params.published
            found.append(reproduction(task, published, arguments.branch, read_json(report)))
    if not any(found):
        raise UserError(
            f"{scores} holds no score that is published for {arguments.branch}: run dvc repro, or "
            "name another --branch and --variant"
        )
    print(reproduction_table([each for each in found if each], params.sources))
    if arguments.answers:
        generated = arguments.generated / arguments.branch / arguments.variant
        print(
            "\n".join(["", *_judged_beside(arguments.answers, generated, arguments.data, params)])
        )


def _judged_beside(
    answers: str, generated: Path, data: Path, params: EvaluationParams
) -> Iterator[str]:
    """The lines of each task that both have answers to."""
    with tempfile.TemporaryDirectory(prefix="nvlm-reproduce-") as scratch:
        stored = answer_files(answers, Path(scratch) / "stored")
        ours = answer_files(str(generated), Path(scratch) / "ours")
        tasks = [task for task in params.tasks if task in stored and task in ours]
        if not tasks:
            raise UserError(f"{answers} and {generated} have answers to no task in common")
        for task in tasks:
            task_params = params.tasks[task]
            questions = read_questions(data / task, task_params.ground_truth)
            runs = [read_answers(files[task], questions) for files in (ours, stored)]
            rule = task_params.published.ours if task_params.published else "score"
            metric = metric_called(task_params.metric)
            different = judged_differently(metric, rule, questions, *runs)
            yield from difference_lines(task, len(questions), different)


def answer_files(run: str, scratch: Path) -> dict[str, Path]:
    """The files of answers that ``run`` names, by task; of a revision, fetched to ``scratch``."""
    revision, colon, name = run.rpartition(":")
    path = fetched(revision, name, scratch) if colon else Path(run)
    if path.is_dir():
        return {file.stem: file for file in path.glob("*.jsonl")}
    if not path.is_file():
        raise UserError(f"{path} is missing: generate the answers first")
    return {path.stem: path}


def fetched(revision: str, name: str, scratch: Path) -> Path:
    """The output ``name`` as it was at ``revision``, out of DVC's cache or remote."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    path = scratch / Path(name).name
    scratch.mkdir()
    try:
        Repo.get(".", name, out=str(path), rev=revision)
    except (DvcException, SCMError, OSError) as error:
        raise UserError(f"{revision}:{name} can't be fetched: {error}") from error
    return path


def _compared(task: str, first: Path, second: Path, data: Path) -> Comparison:
    params = load_params(f"eval.tasks.{task}", TaskParams)
    questions = read_questions(data / task, params.ground_truth)
    answers = [read_answers(path, questions) for path in (first, second)]
    return compare(task, metric_called(params.metric), questions, *answers)


if __name__ == "__main__":
    run_command(main)
