"""Parameters: from ``params.yaml`` to frozen dataclasses, checked once, at the edge."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, make_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from nvlm.errors import UserError

Params = TypeVar("Params")


def load_params(key: str, cls: type[Params], path: Path = Path("params.yaml")) -> Params:
    """Read the mapping at dotted ``key`` of ``path`` into the dataclass ``cls``.

    Raises UserError naming the key, the value and what would be right.
    """
    values = OmegaConf.select(_read(path), key)
    if not isinstance(values, DictConfig):
        raise UserError(f"{path} has no section {key!r}: see the groups in conf/")
    return parse_params(values, cls, key)


def section_keys(key: str, path: Path = Path("params.yaml")) -> list[str]:
    """The names in the mapping at dotted ``key`` of ``path``; none where it is not there."""
    values = OmegaConf.select(_read(path), key)
    return [str(name) for name in values] if isinstance(values, DictConfig) else []


def composed(overrides: Sequence[str], conf: Path = Path("conf")) -> str:
    """The text of params.yaml for ``overrides``. Raises UserError if one doesn't fit ``conf``."""
    from hydra.errors import HydraException

    try:
        try:
            # What is added below a reference would replace all that the reference stands for.
            if any(override.startswith("+") for override in overrides):
                _check_references(overrides, conf)
            config = _compose(overrides, conf)
        except HydraException:
            _check_references(overrides, conf)
            raise
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{reason}: see the groups and keys in {conf}/") from error
    return OmegaConf.to_yaml(config)


def _compose(overrides: Sequence[str], conf: Path) -> DictConfig:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf.resolve()), version_base=None):
        return compose(config_name="config", overrides=list(overrides))


def _check_references(overrides: Sequence[str], conf: Path) -> None:
    """Raise UserError if an override is of a key below a reference (``${data.layouts.coco}``).

    It names the key that the value has where it is defined. Raises HydraException for a group that
    is not there.
    """
    groups = [override for override in overrides if "." not in override.partition("=")[0]]
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        values: Any = OmegaConf.to_container(_compose(groups, conf), resolve=False)
        path = key.split(".")
        for place, name in enumerate(path):
            if isinstance(values, str) and values.startswith("${"):
                defined = ".".join([values[2:-1], *path[place:]])
                raise UserError(
                    f"{key}: {'.'.join(path[:place])} is {values}, and has no keys of its own: "
                    f"override {defined}, which changes whatever refers to it"
                )
            values = values.get(name) if isinstance(values, dict) else None


def _read(path: Path) -> DictConfig:
    """The parameters in ``path``, or a UserError.

    OmegaConf rather than PyYAML reads the file: DVC can write ``3e-05``, which PyYAML takes for a
    string.
    """
    anew = "run python src/compose_params.py"
    try:
        values = OmegaConf.create(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {anew}") from None
    except (YAMLError, ValueError) as error:
        if b"\n<<<<<<< " in b"\n" + path.read_bytes():
            raise UserError(f"{path} holds git's conflict markers: {anew}") from None
        where = ""
        if isinstance(error, MarkedYAMLError) and error.problem_mark:
            where = f" (line {error.problem_mark.line + 1}: {error.problem})"
        raise UserError(f"{path} is no YAML{where}: {anew}") from None
    if not isinstance(values, DictConfig):
        raise UserError(f"{path} holds no parameters: {anew}")
    return values


def parse_params(values: DictConfig | Mapping[str, Any], cls: type[Params], where: str) -> Params:
    """Check ``values`` against the dataclass ``cls``; ``where`` is named in errors.

    ``__post_init__`` of ``cls`` may raise ValueError("FIELD: what would be right").
    """
    try:
        typed = OmegaConf.merge(OmegaConf.structured(_thawed(cls)), values)
        content = OmegaConf.to_container(typed, throw_on_missing=True)
    except OmegaConfBaseException as error:
        name = f"{where}.{error.full_key}" if error.full_key else where
        raise UserError(f"{name}: {str(error.msg or error).splitlines()[0]}") from error
    result = _build(cls, content, where)
    assert isinstance(result, cls)
    return result


def _thawed(kind: Any) -> Any:
    """``kind`` with every dataclass in it not frozen: OmegaConf would not merge into those."""
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        thawed = [
            (
                field.name,
                _thawed(hints[field.name]),
                dataclasses.field(default=field.default, default_factory=field.default_factory),
            )
            for field in fields(kind)
        ]
        return make_dataclass(kind.__name__, thawed, kw_only=True)
    origin, arguments = get_origin(kind), tuple(_thawed(part) for part in get_args(kind))
    if origin is UnionType:
        return Union[arguments]  # noqa: UP007 (the types are known only now)
    return origin[arguments] if origin else kind


def _build(kind: Any, content: Any, where: str) -> Any:
    """``content``, checked before, as an instance of ``kind``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if content is None:
        return None
    if origin is UnionType:
        return _build(arguments[0], content, where)
    if origin is list:
        return [_build(arguments[0], part, f"{where}.{n}") for n, part in enumerate(content)]
    if origin is dict:
        return {key: _build(arguments[1], part, f"{where}.{key}") for key, part in content.items()}
    if not (is_dataclass(kind) and isinstance(kind, type)):
        return content
    hints = get_type_hints(kind)
    values = {name: _build(hints[name], part, f"{where}.{name}") for name, part in content.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{where}.{error}") from error
