"""``checkpoint.json``: what a checkpoint is, how it is laid out, and a digest of every file.

It is written last and read first: a reader learns from it which file is missing, short or altered
before it uses any.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nvlm.atomic import write_text
from nvlm.checkpoint.format.adapter import Adapter, adapter_path
from nvlm.checkpoint.format.architecture import FAMILIES, NORM_TYPES, Architecture
from nvlm.checkpoint.format.files import DTYPES, FileEntry, entry_of, stays_inside
from nvlm.checkpoint.format.layout import Grid, check_tensor_parallel, part_names, part_path
from nvlm.checkpoint.format.tasks import run_tasks
from nvlm.errors import UserError

MANIFEST = "checkpoint.json"
FORMAT = 1  # raised when a reader of the old format could no longer read the new one


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Rows of embedding and head: as Hugging Face has them, and padded for the grid."""

    true: int
    padded: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a half of the model came from."""

    part: str  # "vision_model" or "language_model"
    repo: str
    revision: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of ``checkpoint.json``."""

    format: int = FORMAT
    architecture: Architecture
    grid: Grid
    vocabulary: Vocabulary | None  # None where there is no decoder
    dtype: str  # "float32", "bfloat16" or "float16": of every tensor
    sources: tuple[Source, ...]
    files: Mapping[str, FileEntry]  # by path relative to the checkpoint
    adapter: Adapter | None = None  # not folded in; files have no such key where there is none

    @property
    def other_files(self) -> list[str]:
        """Files that are of no tensor-parallel rank: the tokenizer's, an adapter's."""
        return sorted(name for name in self.files if not name.startswith("tp"))

    def with_files(self, files: Mapping[str, FileEntry]) -> Manifest:
        """The same checkpoint with other files."""
        return dataclasses.replace(self, files=files)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``checkpoint.json`` with sorted keys: the same manifest gives the same bytes.

    A trait of the architecture that has its default is left out: readers that don't know the trait
    read the models that don't have it, and refuse the others by its name.
    """
    content = dataclasses.asdict(manifest)
    for name in ("vision", "language"):
        half = getattr(manifest.architecture, name)
        if half is not None:
            content["architecture"][name] = _without_defaults(half)
    if manifest.adapter is None:
        del content["adapter"]
    text = json.dumps(content, indent=1, sort_keys=True)
    write_text(directory / MANIFEST, text + "\n")


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the checkpoint ``directory``, after a check that its files are there.

    Raises UserError naming the file that is missing or has another size, or saying what is wrong
    with the manifest itself. Digests are for ``check_digests``.
    """
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise ValueError(f"format {content.get('format')!r} is not {FORMAT}")
        manifest: Manifest = _decode(Manifest, content, "manifest")
        _check_consistency(manifest)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{directory} is not a checkpoint, or not a whole one ({MANIFEST} is missing): run the "
            "stage that makes it"
        ) from error
    except (ValueError, UserError) as error:
        raise UserError(f"{path} is altered ({error}): make the checkpoint again") from error
    _check_listing(path, manifest)
    _check_sizes(directory, manifest)
    return manifest


def check_digests(directory: Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Read files ``names`` (all by default) of a checkpoint and compare them with the manifest.

    Raises UserError naming the first altered file.
    """
    chosen = sorted(manifest.files if names is None else names)
    total = sum(manifest.files[name].bytes for name in chosen)
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="verify", delay=2, disable=None
    ) as progress:
        entries = run_tasks(partial(entry_of, directory / name) for name in chosen)
        for name, entry in zip(chosen, entries, strict=True):
            if entry != manifest.files[name]:
                raise UserError(
                    f"{directory / name} is altered (its SHA-256 is not the manifest's): make the "
                    "checkpoint again"
                )
            progress.update(manifest.files[name].bytes)


def _check_consistency(manifest: Manifest) -> None:
    """Raise ValueError or UserError if the manifest contradicts itself."""
    language, vocabulary = manifest.architecture.language, manifest.vocabulary
    tower = manifest.architecture.vision
    if tower is not None and tower.norm_type not in NORM_TYPES:
        raise ValueError(f"norm_type {tower.norm_type!r} is none of {', '.join(NORM_TYPES)}")
    check_tensor_parallel(manifest.architecture, manifest.grid.tensor)
    if manifest.dtype not in DTYPES:
        raise ValueError(f"dtype {manifest.dtype!r} is none of {', '.join(DTYPES)}")
    if language is None:
        if manifest.adapter is not None:
            raise ValueError("there is an adapter, and no decoder that it could adapt")
        return
    if language.family not in FAMILIES:
        raise ValueError(f"family {language.family!r} is none of {', '.join(FAMILIES)}")
    if sum(manifest.grid.layers_per_stage) != language.layers:
        raise ValueError(
            f"stages of {list(manifest.grid.layers_per_stage)} layers are not the decoder's "
            f"{language.layers}"
        )
    if vocabulary is None or not vocabulary.true == language.vocabulary <= vocabulary.padded:
        raise ValueError(f"{vocabulary} is not of the decoder's {language.vocabulary} rows")
    if vocabulary.padded % manifest.grid.tensor:
        raise ValueError(
            f"{vocabulary.padded} rows do not divide by tensor parallel {manifest.grid.tensor}"
        )


def _check_listing(path: Path, manifest: Manifest) -> None:
    """Every part and every layer's adapter are listed; no name leads out of the checkpoint."""
    for name in manifest.files:
        if not stays_inside(name):
            raise UserError(f"{path} lists {name!r}, which is outside of the checkpoint: refused")
    parts = part_names(manifest.architecture)
    wanted = [part_path(rank, part) for rank in range(manifest.grid.tensor) for part in parts]
    if manifest.adapter is not None and manifest.architecture.language is not None:
        wanted += [adapter_path(layer) for layer in range(manifest.architecture.language.layers)]
    for name in wanted:
        if name not in manifest.files:
            raise UserError(f"{path} does not list {name}: make the checkpoint again")


def _check_sizes(directory: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"{path} is missing: make the checkpoint again")
        size = path.stat().st_size
        if size != entry.bytes:
            raise UserError(
                f"{path} has {size} bytes, not the manifest's {entry.bytes}: make the checkpoint "
                "again"
            )


def _without_defaults(half: Any) -> dict[str, Any]:
    defaults = {field.name: field.default for field in dataclasses.fields(half)}
    return {
        name: value for name, value in dataclasses.asdict(half).items() if value != defaults[name]
    }


def _decode(kind: Any, value: Any, where: str) -> Any:
    """``value`` out of JSON as type ``kind``; ValueError says where it is something else.

    Kinds: dataclasses, whose fields with a default may be missing; None | kind, tuple[kind, ...],
    Mapping[str, kind], int, float, bool and str.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        some = next(argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _decode(some, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], item, f"{where}[]") for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        needed = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
        odd = sorted((needed - value.keys()) | (value.keys() - hints.keys()))
        if odd:
            raise ValueError(f"{where} lacks or does not know {', '.join(odd)}")
        fields = {key: _decode(hints[key], value[key], f"{where}.{key}") for key in value}
        return kind(**fields)  # type: ignore[operator]
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in {int, str, bool} and type(value) is kind:
        return value
    raise ValueError(f"{where} can't be {value!r}")
