"""Parameters: from ``params.yaml`` to frozen dataclasses, checked once, at the edge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nvlm.errors import UserError

Params = TypeVar("Params")


def load_params(key: str, cls: type[Params], path: Path = Path("params.yaml")) -> Params:
    """Read the mapping at dotted ``key`` of ``path`` into the dataclass ``cls``.

    OmegaConf rather than PyYAML reads the file: DVC can write ``3e-05``, which PyYAML takes for a
    string. Raises UserError naming the key, the value and what would be right.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: run python src/compose_params.py")
    values = OmegaConf.select(OmegaConf.load(path), key)
    if not isinstance(values, DictConfig):
        raise UserError(f"{path} has no section {key!r}: see the groups in conf/")
    return parse_params(values, cls, key)


def parse_params(
    values: DictConfig | Mapping[str, Any], cls: type[Params], where: str
) -> Params:
    """Check ``values`` against the dataclass ``cls``; ``where`` is named in errors.

    ``__post_init__`` of ``cls`` may raise ValueError("FIELD: what would be right").
    """
    try:
        typed = OmegaConf.merge(OmegaConf.structured(cls), values)
        result = OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        reason = str(error.msg if hasattr(error, "msg") else error).splitlines()[0]
        name = f"{where}.{error.full_key}" if getattr(error, "full_key", None) else where
        raise UserError(f"{name}: {reason}") from error
    except ValueError as error:
        raise UserError(f"{where}.{error}") from error
    assert isinstance(result, cls)
    return result
