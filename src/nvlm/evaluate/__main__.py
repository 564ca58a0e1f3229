"""Compare two runs question by question.

Run with: python -m nvlm.evaluate compare data/generated/72b/pretrained data/generated/72b/sft
or, after `dvc metrics diff`: python -m nvlm.evaluate compare HEAD:data/generated/72b/sft \
    data/generated/72b/sft
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from nvlm.errors import UserError, run_command
from nvlm.evaluate.answering.answers import read_answers
from nvlm.evaluate.ground_truth.readers import read_questions
from nvlm.evaluate.params import TaskParams
from nvlm.evaluate.reporting.compare import Comparison, compare, comparison_table
from nvlm.evaluate.reporting.scoring import metric_called
from nvlm.params import load_params

RUN = "answers to one task (TASK.jsonl) or a directory of them; REVISION:PATH is taken from git"


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(prog="python -m nvlm.evaluate", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("compare", help="wins and losses of B against A")
    command.add_argument("first", metavar="A", help=RUN)
    command.add_argument("second", metavar="B", help=RUN)
    command.add_argument(
        "--data", type=Path, default=Path("data/eval"), help="directory of TASK directories"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nvlm-compare-") as scratch:
        first = answer_files(arguments.first, Path(scratch) / "first")
        second = answer_files(arguments.second, Path(scratch) / "second")
        tasks = sorted(first.keys() & second.keys())
        print(
            comparison_table(
                [_compared(task, first[task], second[task], arguments.data) for task in tasks]
            )
        )


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
