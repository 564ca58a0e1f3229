"""The datasets of a blend: those that are there, and those that were not to be had.

The directory of a dataset that is left out on purpose holds ``missing.json``, which says why. The
others keep their weights to each other; what share is missing is told wherever a blend is.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from nvlm.errors import UserError

INDEX = Path(".nv-meta/index.uuid")  # of a prepared dataset; derived from its shards
MISSING = "missing.json"  # {"reason": sentence}
LEFT_OUT = "left_out.json"  # {GROUP/DATASET: [key of a sample]}


@dataclass(frozen=True, kw_only=True)
class Blend:
    """What a training stage is to read."""

    root: Path  # of the datasets' directories
    weights: dict[str, float]  # of the datasets that are there, by name; sorted
    missing: dict[str, str]  # why, by name; sorted
    missing_share: float  # of the whole blend's weight

    @property
    def indexes(self) -> dict[str, Path]:
        """A file of each dataset that changes with its samples."""
        return {name: self.root / name / INDEX for name in self.weights}

    def told(self) -> str:
        """What is missing, in a sentence; empty where nothing is."""
        if not self.missing:
            return ""
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.missing.items())
        count = len(self.missing)
        return (
            f"{count} of {count + len(self.weights)} datasets of the blend, "
            f"{self.missing_share:.1%} of its weight, are missing ({reasons})"
        )

    def metadataset(self, directory: Path) -> str:
        """The YAML file of an Energon metadataset that is to lie in ``directory``.

        Megatron's own loader takes such a file where it takes a dataset.
        """
        lines = ["__module__: megatron.energon", "__class__: MetadatasetV2"]
        lines += ["splits:", "  train:", "    blend:"]
        for name, weight in self.weights.items():
            path = os.path.relpath(self.root / name, directory)
            lines.append(f"      - {{weight: {weight}, path: {json.dumps(path)}}}")
        return "\n".join(lines) + "\n"


def find_blend(root: Path, weights: dict[str, float]) -> Blend:
    """The datasets in ``root`` that the blend ``weights`` names.

    Raises UserError for a name that was not prepared, and where all datasets are missing.
    """
    prepared = sorted(path.parents[1].name for path in root.glob(f"*/{INDEX}"))
    missing = {}
    for name in sorted(weights.keys() - set(prepared)):
        if not (root / name / MISSING).is_file():
            raise UserError(
                f"data.blend.{name}: {root} holds no prepared dataset of that name, but "
                f"{', '.join(prepared) or 'none'}: run the stage that prepares it, or leave it out "
                "of the blend in conf/data"
            )
        missing[name] = _reason(root / name / MISSING)
    if len(missing) == len(weights):
        name, reason = next(iter(missing.items()))
        raise UserError(
            f"data.blend: every dataset of it is missing in {root}, {name} because: {reason}; "
            "name one that can be had in conf/data"
        )
    return Blend(
        root=root,
        weights={name: weight for name, weight in sorted(weights.items()) if name not in missing},
        missing=missing,
        missing_share=sum(weights[name] for name in missing) / sum(weights.values()),
    )


def left_out(root: Path) -> frozenset[str]:
    """Samples, as DATASET/KEY, that are not to be read: src/find_overlap.py lists, beside ``root``,
    those that show a picture of an evaluation set."""
    path = root.parent / LEFT_OUT
    if not path.is_file():
        return frozenset()
    listed: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    own = f"{root.name}/"
    return frozenset(
        f"{name.removeprefix(own)}/{key}"
        for name, keys in listed.items()
        if name.startswith(own)
        for key in keys
    )


def _reason(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["reason"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} should hold a reason: run the stage that prepares the dataset again"
        ) from error
