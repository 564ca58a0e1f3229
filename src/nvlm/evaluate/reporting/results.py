"""reports/results.md: our scores beside the published, each with its model, prompt and parser."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm.checkpoint.format.manifest import MANIFEST, read_manifest
from nvlm.errors import UserError
from nvlm.evaluate.ground_truth.files import read_json
from nvlm.evaluate.params import (
    EvaluationParams,
    GenerateParams,
    PublishedParams,
    PublishedSource,
    TaskParams,
)
from nvlm.evaluate.reporting.reproduction import (
    as_published,
    by_rule,
    reproduction,
    split_label,
)
from nvlm.evaluate.reporting.scoring import metric_called
from nvlm.evaluate.reporting.table import BEFORE, FINAL, RELEASED

UNPUBLISHED = PublishedParams(split="", rows=[])
MODELS = {BEFORE: "pretrained", FINAL: "ours", RELEASED: "released"}  # what they are called
CAVEAT = {
    "smoke": (
        "These are small stand-in models on small sets of easy-VQA's test pictures and of held-out "
        "handwritten digits, in the benchmarks' formats: what is published shows where a score of "
        "the full recipe would stand, and can't be compared. The released model is the fine-tuned "
        "one, exported and imported again."
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
        """What is published, or nothing."""
        return self.params.published or UNPUBLISHED

    def points(self, report: Mapping[str, Any]) -> str:
        """Score and interval of the rule that the published score goes by."""
        return _ends(by_rule(report, self.published.ours), self.published.scale)


def results_page(scores: Path, checkpoints: Path, params: EvaluationParams, scale: str) -> str:
    """The page. Raises UserError if nothing was scored, or a scored task isn't in ``params``."""
    scored = _scored(scores, params.tasks)
    lines = [
        "# Results",
        "",
        f"Scale: {scale}. {CAVEAT.get(scale, '')}".strip(),
        "",
        "Points with a 95 % bootstrap interval over pictures: a picture is drawn with all of its "
        "questions, and there are as many clusters as pictures (of fewer than some fifty an "
        "interval is too narrow). Scores are by the rule that the published one goes by, quirks "
        'included; the strict score and others follow by task. "Constant" is the best single '
        "answer to all questions.",
        "",
        *_summary(scored),
        "",
        "## Beside the published scores",
        "",
        *_published(scored, params.sources, judged=scale == "full"),
        "",
        "## Models",
        "",
        *_models(checkpoints, scored, params.generate),
    ]
    for each in scored:
        lines += ["", f"## {each.task}", "", *_task(each)]
    return "\n".join(lines) + "\n"


def _scored(scores: Path, tasks: Mapping[str, TaskParams]) -> list[Scored]:
    """The tasks that were scored, in the order of ``tasks``."""
    reports: dict[str, dict[tuple[str, str], Any]] = {}
    for model in MODELS:
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


def _summary(scored: Sequence[Scored]) -> Iterator[str]:
    found = {key for each in scored for key in each.reports}
    branches = sorted({branch for branch, _ in found})
    # By branch, what there is of it.
    shown = [(branch, model) for branch in branches for model in MODELS if (branch, model) in found]
    heads = ["task", "samples", "clusters"]
    for branch in branches:
        heads.append(f"{branch} constant")
        heads += [f"{branch} {MODELS[model]}" for of, model in shown if of == branch]
    yield from _row(heads, heading=True)
    for each in scored:
        cells = [each.task]
        for count in ("samples", "clusters"):
            cells.append(
                ", ".join(sorted({str(report[count]) for report in each.reports.values()}))
            )
        for branch in branches:
            final = each.reports.get((branch, FINAL))
            cells.append("" if final is None else _constant(final, each.published))
            for key in (key for key in shown if key[0] == branch):
                cells.append(each.points(each.reports[key]) if key in each.reports else "")
        yield from _row(cells)


def _published(
    scored: Sequence[Scored], sources: Mapping[str, PublishedSource], *, judged: bool
) -> Iterator[str]:
    """A line for each model and published split; ours only beside the split that it is of."""
    yield from _row(["task", "model", "split", "ours", *sources, "spread", "verdict"], heading=True)
    for each in scored:
        published = each.published
        for branch, model in sorted(each.reports):
            if model == BEFORE:
                continue
            found = reproduction(each.task, published, branch, each.reports[branch, model])
            for split in dict.fromkeys(row.split for row in published.rows):
                rows = [row for row in published.rows if row.split == split]
                points = {row.source: row.scores[branch] for row in rows if branch in row.scores}
                if not points:
                    continue
                held = found if split == published.split else None
                yield from _row(
                    [
                        *(each.task, f"{branch} {MODELS[model]}", split_label(published, split)),
                        each.points(each.reports[branch, model]) if held else "",
                        *(
                            as_published(points[source], published.scale)
                            if source in points
                            else ""
                            for source in sources
                        ),
                        f"{max(points.values()) - min(points.values()):.1f}",
                        held.verdict if held and judged else "",
                    ]
                )
    yield ""
    yield (
        "Pass: within the span of the published scores, as they are rounded. Near: outside of it "
        "by no more than another spread, or by no more than chance (the interval reaches it). "
        "Off: neither."
    )
    yield ""
    for name, source in sources.items():
        yield f"- {name}: {source.title} ({source.address})"


def _constant(report: Mapping[str, Any], published: PublishedParams) -> str:
    return f"{by_rule(report, published.ours)['majority'] * published.scale:.1f}"


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
    heads = ["model", "part", "samples", "clusters", "unparsable", "score", "constant"]
    yield from _row(heads, heading=True)
    for (branch, model), report in sorted(each.reports.items()):
        name = f"{branch} {model}"
        yield from _row([name, "**all**", *_counted(report, scale)])
        for rule, scores in report.get("other_scores", {}).items():
            yield from _row([name, f"all, `{rule}`", "", "", "", *_numbers(scores, scale)])
        if "blank" in report:
            yield from _row(
                [name, "blank images", "", "", "", f"{report['blank'] * scale:.1f}", ""]
            )
        for category, part in report.get("by_category", {}).items():
            yield from _row([name, category, *_counted(part, scale)])


def _counted(part: Mapping[str, Any], scale: int) -> list[str]:
    counts = [str(part[count]) for count in ("samples", "clusters", "unparsable")]
    return [*counts, *_numbers(part, scale)]


def _numbers(part: Mapping[str, Any], scale: int) -> list[str]:
    return [_ends(part, scale), f"{part['majority'] * scale:.1f}"]


def _ends(part: Mapping[str, Any], scale: int) -> str:
    score, low, high = (part[name] * scale for name in ("score", "low", "high"))
    return f"{score:.1f} ({low:.1f} to {high:.1f})"


def _code(text: str) -> str:
    """``text`` on one line, as code."""
    return "`" + text.replace("\n", "\\n").replace("`", "'") + "`" if text else "none"


def _row(cells: Sequence[str], *, heading: bool = False) -> Iterator[str]:
    yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    if heading:
        yield "|" + "---|" * len(cells)
