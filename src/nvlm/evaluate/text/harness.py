"""lm-evaluation-harness as a program: its command line, its environment, one run for some tasks."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvlm.errors import UserError
from nvlm.evaluate.text.params import TextParams, TextTaskParams

LOCK = Path("requirements-text.lock")
PACKAGE = "lm_eval"
REMEDY = "run make text-setup, or name another in eval.text.environment"
# Task files of one's own, beside the harness's. What they read is found from the root.
OWN_TASKS = Path("conf/eval/text_tasks")
EXECUTION = "HF_ALLOW_CODE_EVAL"  # asked for by the rule of HumanEval, in the package evaluate


def find_python(environment: Path, lock: Path = LOCK) -> Path:
    """The Python of ``environment``, whose harness has the version in ``lock``.

    Raises UserError with the remedy if there is none, or of another version.
    """
    python = environment / "bin/python"
    if not python.is_file():
        raise UserError(f"{environment} holds no Python for the text benchmarks: {REMEDY}")
    asked = f"from importlib.metadata import version; print(version('{PACKAGE}'))"
    done = subprocess.run(
        [python, "-c", asked], env=_environment(False), capture_output=True, text=True, check=False
    )
    found, pinned = done.stdout.strip() or "none", _pinned(lock)
    if found != pinned:
        raise UserError(f"{environment} has {PACKAGE} {found}, and {lock} says {pinned}: {REMEDY}")
    return python


def by_shots(tasks: Mapping[str, TextTaskParams]) -> list[dict[str, TextTaskParams]]:
    """``tasks`` shared out by their number of shots: a run of the harness has one for all."""
    runs: dict[int, dict[str, TextTaskParams]] = {}
    for name, task in tasks.items():
        runs.setdefault(task.shots, {})[name] = task
    return list(runs.values())


def command(
    python: Path,
    model: Path,
    params: TextParams,
    tasks: Mapping[str, TextTaskParams],
    *,
    on_gpus: bool,
    out: Path,
) -> list[str]:
    """The command line for ``tasks``, which have one number of shots.

    On GPUs the model's layers are spread over all that are seen.
    """
    (shots,) = {task.shots for task in tasks.values()}
    arguments = {"pretrained": str(model), "dtype": params.dtype, "parallelize": on_gpus}
    words = [str(python), "-m", PACKAGE, "run", "--model", "hf"]
    words += ["--model_args", json.dumps(arguments), "--device", "cuda" if on_gpus else "cpu"]
    words += ["--tasks", *tasks, "--num_fewshot", str(shots)]
    words += ["--gen_kwargs", json.dumps({"max_gen_toks": params.max_new_tokens})]
    words += ["--batch_size", str(params.batch_size), "--output_path", str(out)]
    if OWN_TASKS.is_dir():
        words += ["--include_path", str(OWN_TASKS)]
    if params.limit is not None:
        words += ["--limit", str(params.limit)]
    if params.chat:
        words.append("--apply_chat_template")
    if any(task.executes for task in tasks.values()):
        words.append("--confirm_run_unsafe_code")
    return words


def run(words: Sequence[str], tasks: Mapping[str, TextTaskParams], out: Path) -> Any:
    """Run ``words``, the command of ``tasks``; the results that it wrote beside ``out``, a .json.

    Its progress and its complaints are shown as they come. Raises UserError if it fails.
    """
    execution = any(task.executes for task in tasks.values())
    done = subprocess.run(words, env=_environment(execution), check=False)
    written = sorted(out.parent.glob(f"{out.stem}_*.json"))  # it adds the time
    if done.returncode or len(written) != 1:
        raise UserError(
            f"{PACKAGE} ended with status {done.returncode} and without results of "
            f"{', '.join(tasks)}: what it said above names the reason"
        )
    return json.loads(written[0].read_bytes())


def _environment(execution: bool) -> dict[str, str]:
    """Without this project's modules; programs run only where ``execution`` says so."""
    variables = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", EXECUTION}}
    return variables | ({EXECUTION: "1"} if execution else {})


def _pinned(lock: Path) -> str:
    if lock.is_file():
        for line in lock.read_text().splitlines():
            name, _, version = line.partition("==")
            if name == PACKAGE:
                return version.strip()
    raise UserError(f"{lock} does not pin {PACKAGE}: restore it from the repository")
