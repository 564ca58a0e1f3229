"""Compose conf/ into params.yaml, byte for byte as `dvc exp run` does.

Run with: python src/compose_params.py [scale=full] [train.sft_72b.lr=1e-5] ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nvlm.atomic import write_text
from nvlm.errors import UserError, run_command


def main() -> None:
    """Write the composed parameters; an unknown key or group leaves the file alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="groups and values, such as scale=full")
    parser.add_argument("--out", type=Path, default=Path("params.yaml"))
    arguments = parser.parse_args()
    write_text(arguments.out, composed(arguments.overrides))


def composed(overrides: list[str], conf: Path = Path("conf")) -> str:
    """The text of params.yaml for ``overrides``. Raises UserError if one doesn't fit ``conf``."""
    try:
        with initialize_config_dir(str(conf.resolve()), version_base=None):
            config = compose(config_name="config", overrides=overrides)
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{reason}: see the groups and keys in {conf}/") from error
    return OmegaConf.to_yaml(config)


if __name__ == "__main__":
    run_command(main)
