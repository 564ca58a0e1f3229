"""reports/results.md: our scores beside the paper's, each with its model, prompt and parser."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm.checkpoint.format.manifest import MANIFEST, read_manifest
from nvlm.errors import UserError
from nvlm.evaluate.ground_truth.files import read_json
from nvlm.evaluate.params import GenerateParams, PublishedParams, TaskParams
from nvlm.evaluate.reporting.scoring import metric_called
from nvlm.evaluate.reporting.table import BEFORE, FINAL

UNPUBLISHED = PublishedParams(split="", scores={})
CAVEAT = {
    "smoke": (
        "These are small stand-in models on small sets of easy-VQA's test pictures and of held-out "
        "handwritten digits, in the benchmarks' formats: the columns of the paper show where a "
        "score of the full recipe would stand, and can't be compared."
    ),
    "full": "The benchmarks' own sets and the published weights.",
    **dict.fromkeys(
        ("node", "card"),
        "The benchmarks' own sets, and small siblings of the published models: the columns of the "
        "paper are of models ten to a hundred times as large.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One task's reports by (branch, model), such as ("72b", "sft")."""

    task: str
    params: TaskParams
    reports: Mapping[tuple[str, str], Mapping[str, Any]]

    @property
    def published(self) -> PublishedParams:
        """The paper's scores, or none."""
        return self.params.published or UNPUBLISHED

    def points(self, report: Mapping[str, Any]) -> str:
        """Score and interval of the rule that the paper's score goes by."""
        return _ends(_by_rule(report, self.published.ours), self.published.scale)


def results_page(
    scores: Path,
    checkpoints: Path,
    tasks: Mapping[str, TaskParams],
    generate: GenerateParams,
    scale: str,
) -> str:
    """The page. Raises UserError if nothing was scored, or a scored task isn't in ``tasks``."""
    scored = _scored(scores, tasks)
    branches = sorted({branch for each in scored for branch, _ in each.reports})
    lines = [
        "# Results",
        "",
        f"Scale: {scale}. {CAVEAT.get(scale, '')}".strip(),
        "",
        "Points with a 95 % bootstrap interval over questions. Ours are by the rule that the "
        "paper's score goes by, quirks included; the strict score and others follow by task. "
        '"Constant" is the best single answer to all questions. Paper: NVLM-D, arXiv 2409.11402, '
        "Table 7.",
        "",
        *_summary(scored, branches),
        "",
        "## Models",
        "",
        *_models(checkpoints, scored, generate),
    ]
    for each in scored:
        lines += ["", f"## {each.task}", "", *_task(each)]
    return "\n".join(lines) + "\n"


def _scored(scores: Path, tasks: Mapping[str, TaskParams]) -> list[Scored]:
    """The tasks that were scored, in the order of ``tasks``."""
    reports: dict[str, dict[tuple[str, str], Any]] = {}
    for model in (FINAL, BEFORE):
        for path in sorted(scores.glob(f"*/{model}/*.json")):
            reports.setdefault(path.stem, {})[path.parent.parent.name, model] = read_json(path)
    if not reports:
        raise UserError(f"{scores} holds no scores: run dvc repro")
    if unknown := sorted(reports.keys() - tasks.keys()):
        raise UserError(f"{scores} has scores of {unknown[0]}, which is no task of eval.tasks")
    return [
        Scored(task=task, params=params, reports=reports[task])
        for task, params in tasks.items()
        if task in reports
    ]


def _summary(scored: Sequence[Scored], branches: Sequence[str]) -> Iterator[str]:
    heads = ["task", "samples"]
    for branch in branches:
        heads += [f"{branch} constant", f"{branch} pretrained", f"{branch} ours", f"{branch} paper"]
    yield from _row([*heads, "paper's split"], heading=True)
    for each in scored:
        samples = {str(report["samples"]) for report in each.reports.values()}
        cells = [each.task, ", ".join(sorted(samples))]
        for branch in branches:
            final = each.reports.get((branch, FINAL))
            before = each.reports.get((branch, BEFORE))
            rule = each.published.ours
            cells += [
                "" if final is None else _constant(final, rule, each.published.scale),
                "" if before is None else each.points(before),
                "" if final is None else each.points(final),
                _plain(each.published.scores.get(branch)),
            ]
        yield from _row([*cells, each.published.split])


def _constant(report: Mapping[str, Any], rule: str, scale: int) -> str:
    return f"{_by_rule(report, rule)['majority'] * scale:.1f}"


def _by_rule(report: Mapping[str, Any], rule: str) -> Mapping[str, Any]:
    by_rule: Mapping[str, Any] = report if rule == "score" else report["other_scores"][rule]
    return by_rule


def _models(checkpoints: Path, scored: Sequence[Scored], generate: GenerateParams) -> Iterator[str]:
    yield from _row(["model", "made from", "manifest (SHA-256)"], heading=True)
    for branch, model in sorted({key for each in scored for key in each.reports}):
        directory = checkpoints / branch / model
        sources = ", ".join(
            f"{source.repo} @ {source.revision}" for source in read_manifest(directory).sources
        )
        digest = hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
        yield from _row([f"{branch} {model}", sources, f"`{digest[:16]}`"])
    drawn = "greedy" if generate.sampling is None else f"sampled, {generate.sampling}"
    yield ""
    yield (
        f"Answers: {drawn}, {generate.dtype}, at most {generate.max_tiles} tiles"
        f"{' and a thumbnail' if generate.thumbnail else ''},"
        f" {'with' if generate.tile_tags else 'without'} tile tags."
    )


def _task(each: Scored) -> Iterator[str]:
    ask, scale = each.params.ask, each.published.scale
    module = metric_called(each.params.metric)
    first_line = (module.__doc__ or "").splitlines()[0]
    yield f"- Parser: `{each.params.metric}`. {first_line}"
    yield f"- System: {_code(ask.system)}"
    yield f"- Prompt: {_code(ask.prompt)}"
    if ask.open_prompt:
        yield f"- Prompt without options: {_code(ask.open_prompt)}"
    yield f"- At most {ask.max_new_tokens} tokens; images: {ask.images}."
    yield ""
    heads = ["model", "part", "samples", "unparsable", "score", "constant"]
    yield from _row(heads, heading=True)
    for (branch, model), report in sorted(each.reports.items()):
        name = f"{branch} {model}"
        yield from _row([name, "**all**", *_counted(report, scale)])
        for rule, scores in report.get("other_scores", {}).items():
            yield from _row([name, f"all, `{rule}`", "", "", *_numbers(scores, scale)])
        if "blank" in report:
            yield from _row([name, "blank images", "", "", f"{report['blank'] * scale:.1f}", ""])
        for category, part in report.get("by_category", {}).items():
            yield from _row([name, category, *_counted(part, scale)])


def _counted(part: Mapping[str, Any], scale: int) -> list[str]:
    return [str(part["samples"]), str(part["unparsable"]), *_numbers(part, scale)]


def _numbers(part: Mapping[str, Any], scale: int) -> list[str]:
    return [_ends(part, scale), f"{part['majority'] * scale:.1f}"]


def _ends(part: Mapping[str, Any], scale: int) -> str:
    score, low, high = (part[name] * scale for name in ("score", "low", "high"))
    return f"{score:.1f} ({low:.1f} to {high:.1f})"


def _plain(points: float | None) -> str:
    return "" if points is None else f"{points:g}"


def _code(text: str) -> str:
    """``text`` on one line, as code."""
    return "`" + text.replace("\n", "\\n").replace("`", "'") + "`" if text else "none"


def _row(cells: Sequence[str], *, heading: bool = False) -> Iterator[str]:
    yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    if heading:
        yield "|" + "---|" * len(cells)
