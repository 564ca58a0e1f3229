"""A Hugging Face directory as a source: its configuration and its safetensors, sharded or not.

Tensors are mapped, not loaded: what is in memory is what has been touched, and it goes when the
tensors go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nvlm.checkpoint.format.files import DTYPES, stays_inside
from nvlm.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class HuggingFaceWeights:
    """The tensors of a directory, by name."""

    def __init__(self, directory: Path) -> None:
        """Read the index, or the names in the single file.

        Raises UserError if neither is there, or a file of the index isn't.
        """
        self.directory = directory
        self.files = self._find_files()  # tensor name -> file name

    def check(self, shapes: Mapping[str, tuple[int, ...]], ignored: tuple[str, ...] = ()) -> str:
        """Compare names and shapes with ``shapes`` before any tensor is read; return the dtype.

        A name that ends in one of ``ignored`` may be there. Raises UserError naming the first
        tensor that is missing, unexpected, of another shape or of another dtype: no layer is lost
        on the way, and no stray tensor takes another's place.
        """
        for name in sorted(self.files.keys() - shapes.keys()):
            if not name.endswith(ignored or ("\0",)):
                raise UserError(f"{self.directory} has an unexpected tensor {name}: refused")
        for name in shapes:
            if name not in self.files:
                raise UserError(f"{self.directory} lacks the tensor {name}: download it again")
        dtypes: dict[str, str] = {}
        for file in sorted(set(self.files.values())):
            with self._open(file) as source:
                present = set(source.keys())
                for name in (name for name in shapes if self.files[name] == file):
                    if name not in present:
                        raise UserError(f"{self.directory / file} lacks {name}: download it again")
                    view = source.get_slice(name)
                    if tuple(view.get_shape()) != shapes[name]:
                        raise UserError(
                            f"{name} in {self.directory / file} has shape {view.get_shape()}, not "
                            f"{list(shapes[name])} as config.json says"
                        )
                    dtypes.setdefault(view.get_dtype(), name)
        return self._one_dtype(dtypes)

    def read(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix``, by what follows it, as mapped views."""
        tensors = {}
        names = [name for name in self.files if name.startswith(prefix)]
        for file in sorted({self.files[name] for name in names}):
            with self._open(file) as source:
                for name in (name for name in names if self.files[name] == file):
                    tensors[name.removeprefix(prefix)] = source.get_tensor(name)
        return tensors

    @property
    def bytes(self) -> int:
        """Bytes of the files, for progress."""
        return sum((self.directory / file).stat().st_size for file in set(self.files.values()))

    def _find_files(self) -> dict[str, str]:
        index, single = self.directory / INDEX, self.directory / SINGLE
        if not index.is_file():
            if not single.is_file():
                raise UserError(
                    f"{self.directory} has neither {INDEX} nor {SINGLE}: download the model as "
                    "safetensors (pickled weights are not read)"
                )
            with self._open(SINGLE) as source:
                return dict.fromkeys(source.keys(), SINGLE)
        try:
            files: dict[str, str] = dict(json.loads(index.read_bytes())["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{index} is not a safetensors index: download it again") from error
        for file in sorted(set(map(str, files.values()))):
            if not stays_inside(file):
                raise UserError(f"{index} names {file!r}, which is outside of the model: refused")
            if not (self.directory / file).is_file():
                raise UserError(f"{self.directory / file} is missing: download it again")
        return files

    def _open(self, file: str) -> Any:
        try:
            return safe_open(self.directory / file, framework="pt")
        except SafetensorError as error:
            raise UserError(
                f"{self.directory / file} is not whole ({error}): download it again"
            ) from error

    def _one_dtype(self, dtypes: Mapping[str, str]) -> str:
        names = {code: name for name, code in DTYPES.items()}
        if len(dtypes) != 1 or not dtypes.keys() <= names.keys():
            found = ", ".join(f"{code} ({name})" for code, name in sorted(dtypes.items()))
            raise UserError(
                f"{self.directory} holds {found}: all tensors have to be of one of "
                f"{', '.join(DTYPES)}"
            )
        return names[next(iter(dtypes))]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; UserError if ``path`` is missing or is none."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: download the model again") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): download the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: download the model again")
    return content
