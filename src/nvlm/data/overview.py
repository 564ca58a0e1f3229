"""A table of every dataset: where it is to be had, what of it is here, what it weighs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nvlm.fetch.manifest import read_manifest, why_missing
from nvlm.fetch.sources import Source
from nvlm.params import parse_params

GROUPS = ("pretrain", "sft", "eval")
GIGABYTE = 1e9


@dataclass(frozen=True, kw_only=True)
class Line:
    """One dataset, as words."""

    dataset: str
    share: str  # of its blend's weight
    whence: str
    gigabytes: str  # of its own source and of the pictures that it shares
    licence: str
    fetched: str
    samples: str  # that were prepared


def overview(data: Any, raw: Path, *, missing: bool) -> str:
    """The datasets of the section ``data`` of the parameters, by group; sources lie in ``raw``.

    ``missing``: only those whose sources are not all here.
    """
    sources = {
        name: parse_params(values, Source, f"data.sources.{name}")
        for name, values in data.sources.items()
    }
    lines = [
        line
        for group in GROUPS
        for name in data[group]
        if not missing or not _is_here(data[group][name], raw)
        for line in _line(data, group, name, sources, raw)
    ]
    named = [{field.name: field.name.replace("_", " ") for field in fields(Line)}]
    named += [vars(line) for line in lines]
    widths = {name: max(len(row[name]) for row in named) for name in named[0]}
    right = {"share", "gigabytes", "samples"}
    rows = [
        "  ".join(
            text.rjust(widths[name]) if name in right else text.ljust(widths[name])
            for name, text in row.items()
        ).rstrip()
        for row in named
    ]
    gone = [f"{name}: {each.why_unavailable}" for name, each in sources.items() if each.unavailable]
    here = sum(_is_here(data[group][name], raw) for group in GROUPS for name in data[group])
    total = sum(len(data[group]) for group in GROUPS)
    return "\n".join([*rows, "", *gone, f"{here} of {total} datasets are here"])


def _line(
    data: Any, group: str, name: str, sources: dict[str, Source], raw: Path
) -> Iterator[Line]:
    entry = data[group][name]
    names = _sources(entry)
    known = [sources[source] for source in names if source in sources]
    weights = (data.blends or {}).get(group) or {}
    total = sum(weights.values())
    sizes = [_bytes(source, sources[source], raw) for source in names if source in sources]
    yield Line(
        dataset=f"{group}/{name}",
        share=f"{weights[name] / total:.1%}" if name in weights else "",
        whence=_short("; ".join(dict.fromkeys(map(whence, known))) or entry.source, 44),
        gigabytes=f"{sum(sizes) / GIGABYTE:.2f}" if sizes and all(sizes) else "?" if sizes else "",
        licence=_short("; ".join(dict.fromkeys(source.licence for source in known)), 28),
        fetched=_state(entry, known, raw),
        samples=_samples(group, name),
    )


def whence(source: Source) -> str:
    """Where ``source`` is to be had, in a few words."""
    if source.unavailable:
        return "not to be had"
    places = []
    for files in (source.hub, source.github):
        if files:
            places.append(f"{files.repo}@{files.revision[:12]}")
    if source.web:
        hosts = dict.fromkeys(file.url.split("/")[2] for file in source.web)
        places.append(", ".join(hosts))
    return " + ".join(places)


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def _sources(entry: Any) -> list[str]:
    paths = dict.fromkeys(str(entry.get(key, "")) for key in ("requires", "images"))
    return [Path(path).stem for path in paths if path.startswith("data/raw/")]


def _is_here(entry: Any, raw: Path) -> bool:
    if entry.source not in ("published", "records", "official"):
        return True
    manifests = [raw / f"{name}.json" for name in _sources(entry)]
    there = all(path.is_file() or path.with_suffix("").is_dir() for path in manifests)
    return there and not why_missing(*(str(path) for path in manifests if path.is_file()))


def _state(entry: Any, known: list[Source], raw: Path) -> str:
    manifests = [raw / f"{name}.json" for name in _sources(entry)]
    if why_missing(*(str(path) for path in manifests if path.is_file())):
        return "left out"
    if _is_here(entry, raw):
        return "yes"
    return "needs a token" if any(source.gated for source in known) else "no"


def _bytes(name: str, source: Source, raw: Path) -> int:
    """What was fetched, or what is written about it; 0 where nobody knows."""
    manifest = raw / f"{name}.json"
    if manifest.is_file():
        return sum(file["bytes"] for file in read_manifest(manifest).get("files", []))
    known = [file.bytes for file in source.web]
    whole = source.hub is None and source.github is None and all(known)
    return sum(size or 0 for size in known) if whole else 0


def _samples(group: str, name: str) -> str:
    metrics = Path("metrics/data") / f"{group}_{name}.json"
    if not metrics.is_file():
        return "prepared" if (Path("data") / group / name).is_dir() else ""
    return str(json.loads(metrics.read_text(encoding="utf-8"))["samples"])
