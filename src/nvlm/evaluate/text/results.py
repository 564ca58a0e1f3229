"""What the harness wrote, as metrics: scores, standard errors and versions; no time, no path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvlm.errors import UserError
from nvlm.evaluate.text.params import TextTaskParams

PROGRAMS = ("lm_eval", "transformers")


def measured(
    results: Mapping[str, Any], tasks: Mapping[str, TextTaskParams], published: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Of each of ``tasks`` in ``results``: score and standard error in 0 to 1, shots, questions.

    ``published``: points of some of the tasks, which stand beside the score in 0 to 1. Raises
    UserError if a task has no such metric, or was run with another number of shots.
    """
    return {name: _measured(name, results, tasks[name], published) for name in tasks}


def versions(results: Mapping[str, Any], tasks: Mapping[str, TextTaskParams]) -> dict[str, str]:
    """Versions of the programs, and of the harness's wording of each task."""
    found = {name: str(results[f"{name}_version"]) for name in PROGRAMS}
    return found | {name: str(results["versions"].get(name)) for name in tasks}


def _measured(
    name: str, results: Mapping[str, Any], task: TextTaskParams, published: Mapping[str, float]
) -> dict[str, Any]:
    values = results["results"].get(name, {})
    if not isinstance(values.get(task.metric), int | float):
        known = [key for key in values if "," in key and "_stderr," not in key]
        raise UserError(
            f"eval.text.tasks.{name}.metric: {task.metric!r} should be one of "
            f"{'; '.join(known) or 'none, for the harness gives no number of it as a whole'}"
        )
    metric, _, rule = task.metric.partition(",")
    error = values.get(f"{metric}_stderr,{rule}")
    parts = _parts(name, results)
    shots = {results["n-shot"][part] for part in parts}
    if shots != {task.shots}:
        raise UserError(
            f"eval.text.tasks.{name}.shots: {task.shots} is not what the harness lets it have "
            f"({', '.join(map(str, sorted(shots)))})"
        )
    content = {
        "score": values[task.metric],
        "stderr": error if isinstance(error, int | float) else None,  # of some rules: "N/A"
        "shots": task.shots,
        "questions": sum(results["n-samples"][part]["effective"] for part in parts),
    }
    return content | ({"published": published[name] / 100} if name in published else {})


def _parts(name: str, results: Mapping[str, Any]) -> list[str]:
    """The tasks that ``name`` stands for: itself, or those of a group and of the groups in it."""
    inner = results.get("group_subtasks", {}).get(name) or []
    return [part for each in inner for part in _parts(each, results)] if inner else [name]
