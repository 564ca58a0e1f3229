"""Parameters of the conversion stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from nvlm.errors import UserError
from nvlm.params import parse_params

PADDING = "make_vocabulary_divisible_by"


@dataclass(frozen=True, kw_only=True)
class LayoutParams:
    """What a half of the model is converted for."""

    tensor_parallel: int
    make_vocabulary_divisible_by: int = 1  # of a decoder: as Megatron-LM's option of that name

    def __post_init__(self) -> None:
        for name in ("tensor_parallel", PADDING):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} should be 1 or more")


def load_layout(section: str | None = None, path: Path = Path("params.yaml")) -> LayoutParams:
    """``model.tensor_parallel``, and the vocabulary's padding in the decoder's ``section``.

    Single values rather than sections: a converter's stage depends on these alone. Raises UserError
    naming a key that is missing or wrong.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: run python src/compose_params.py")
    keys = {"tensor_parallel": "model.tensor_parallel"}
    if section is not None:
        keys[PADDING] = f"{section}.{PADDING}"
    params = OmegaConf.load(path)
    values = {}
    for name, key in keys.items():
        values[name] = OmegaConf.select(params, key)
        if values[name] is None:
            raise UserError(f"{path} has no value {key!r}: see the groups in conf/")
    return parse_params(values, LayoutParams, section or "model")
