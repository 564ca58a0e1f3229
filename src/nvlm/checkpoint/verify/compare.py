"""Two checkpoints, tensor by tensor, bit by bit.

Files are read, whatever their manifests' digests say; one that is the same file on disk is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from nvlm.checkpoint.format.architecture import Architecture, VisionArchitecture
from nvlm.checkpoint.format.files import read_part
from nvlm.checkpoint.format.layout import VISION, part_names, part_path
from nvlm.checkpoint.format.manifest import Manifest, read_manifest
from nvlm.checkpoint.format.sharding import as_bits, same_bits
from nvlm.checkpoint.huggingface.merged import whole_tensors
from nvlm.checkpoint.huggingface.nvlm_d import DUMMY_HEADS, TABLES
from nvlm.checkpoint.huggingface.weights import HuggingFaceWeights
from nvlm.checkpoint.parts import vision


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A tensor, or a value of the manifest, and how it differs (None: it doesn't)."""

    name: str
    difference: str | None


def compare(first: Path, second: Path) -> Iterator[Comparison]:
    """Compare two checkpoints: architecture, then tensors, then the other files.

    Rank by rank where both have the same tensor-parallel layout; else tensors merged from the
    ranks, dummy heads and padding left out. The pipeline's layout makes no difference. Raises
    UserError if one is damaged.
    """
    a, b = read_manifest(first), read_manifest(second)
    described = _compare_values(_plain(a), _plain(b))
    yield from described
    if any(comparison.difference for comparison in described):
        return
    same_layout = (a.grid.tensor, a.vocabulary) == (b.grid.tensor, b.vocabulary)
    total = sum(entry.bytes for entry in a.files.values())
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="compare", delay=2, disable=None
    ) as progress:
        for part in part_names(a.architecture):
            if not same_layout:
                yield from _compare_whole((first, a), (second, b), part)
            for rank in range(a.grid.tensor):
                if same_layout:
                    yield from _compare_files(first, second, rank, part)
                progress.update(a.files[part_path(rank, part)].bytes)
    for name in sorted({*a.other_files, *b.other_files}):
        same = a.files.get(name) == b.files.get(name)
        yield Comparison(name=name, difference=None if same else "another content, or not in both")


def compare_with_source(
    export: Path, source: Path, half: str, architecture: Architecture
) -> Iterator[Comparison]:
    """Compare one half of an NVLM_D directory with the repo that it was converted from.

    ``half``: "vision_model" or "language_model", which the names in ``export`` begin with.
    """
    ours, theirs = HuggingFaceWeights(export), HuggingFaceWeights(source)
    prefix = f"{half}."
    groups = {
        name.rpartition(".")[0] if not _in_layer(name) else _layer_of(name): None
        for name in sorted(theirs.files)
    }
    for group in groups:
        expected = theirs.read(f"{group}.")
        found = ours.read(f"{prefix}{group}.")
        if half == VISION and _in_layer(f"{group}.x"):
            found = _without_dummies(found, architecture.vision)
        if f"{prefix}{group}.weight" in TABLES:
            assert architecture.language is not None
            found = {"weight": found["weight"][: architecture.language.vocabulary]}
        yield from _compare_tensors(found, expected, f"{prefix}{group}.")


def _compare_files(first: Path, second: Path, rank: int, part: str) -> Iterator[Comparison]:
    path = part_path(rank, part)
    a, b = read_part(first, rank, part), read_part(second, rank, part)
    if (first / path).samefile(second / path):
        yield from (Comparison(name=f"tp{rank:02d}/{part}.{name}", difference=None) for name in a)
        return
    yield from _compare_tensors(a, b, f"tp{rank:02d}/{part}.")


def _compare_whole(
    first: tuple[Path, Manifest], second: tuple[Path, Manifest], part: str
) -> Iterator[Comparison]:
    both = zip(whole_tensors(*first, part), whole_tensors(*second, part), strict=True)
    for (name, a), (_, b) in both:
        yield _compare_pair(name, torch.cat(list(a)), torch.cat(list(b)))


def _compare_tensors(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], prefix: str
) -> Iterator[Comparison]:
    for name in sorted({*a, *b}):
        if name not in a or name not in b:
            where = "first" if name in a else "second"
            yield Comparison(name=prefix + name, difference=f"is in the {where} only")
        else:
            yield _compare_pair(prefix + name, a[name], b[name])


def _compare_pair(name: str, a: Tensor, b: Tensor) -> Comparison:
    difference = None
    if a.shape != b.shape:
        difference = f"shape {list(a.shape)} and {list(b.shape)}"
    elif a.dtype != b.dtype:
        difference = f"dtype {a.dtype} and {b.dtype}"
    elif not same_bits(a, b):
        differing = as_bits(a) != as_bits(b)
        first = int(differing.nonzero()[0])
        index = [int(i) for i in torch.unravel_index(torch.tensor(first), a.shape)]
        difference = (
            f"shape {list(a.shape)}: {int(differing.sum())} of {a.numel()} elements differ, "
            f"the first at {index}: {a.reshape(-1)[first].item()!r} and "
            f"{b.reshape(-1)[first].item()!r}"
        )
    return Comparison(name=name, difference=difference)


def _compare_values(a: Mapping[str, object], b: Mapping[str, object]) -> list[Comparison]:
    return [
        Comparison(
            name=name,
            difference=None if a.get(name) == b.get(name) else f"{a.get(name)} and {b.get(name)}",
        )
        for name in sorted({*a, *b})
    ]


def _plain(manifest: Manifest) -> dict[str, object]:
    """The architecture's values by dotted name, the dtype, and the adapter."""
    values: dict[str, object] = {"dtype": manifest.dtype, "adapter": manifest.adapter}
    for half, content in asdict(manifest.architecture).items():
        values |= {f"{half}.{name}": value for name, value in (content or {}).items()}
    return values


def _in_layer(name: str) -> bool:
    return name.startswith(("encoder.layers.", "model.layers."))


def _layer_of(name: str) -> str:
    return ".".join(name.split(".")[:3])


def _without_dummies(
    layer: Mapping[str, Tensor], tower: VisionArchitecture | None
) -> dict[str, Tensor]:
    assert tower is not None
    return vision.drop_dummy_heads(layer, tower, DUMMY_HEADS)
