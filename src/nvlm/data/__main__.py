"""``python -m nvlm.data``: where every dataset is to be had, and one of them fetched by hand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nvlm.data.overview import overview
from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.prepare import prepare_dataset
from nvlm.errors import UserError, run_command
from nvlm.fetch.fetching import FetchParams, fetch_source
from nvlm.fetch.lock import SourcesLock
from nvlm.fetch.sources import Source
from nvlm.params import composed, parse_params

RAW, LOCK = Path("data/raw"), Path("data/sources.lock")


def main() -> None:
    """Read the verb and its arguments, and do it."""
    parser = argparse.ArgumentParser(prog="python -m nvlm.data", description=__doc__)
    parser.add_argument("--scale", help="compose conf/ with this scale, instead of params.yaml")
    verbs = parser.add_subparsers(dest="verb", required=True)
    sources = verbs.add_parser("sources", help="a table of every dataset: where from, what is here")
    sources.add_argument("--missing", action="store_true", help="those that are not fetched alone")
    fetch = verbs.add_parser("fetch", help="fetch sources now, as the stage fetch_data does")
    fetch.add_argument("names", nargs="+", help="names of data.sources")
    prepare = verbs.add_parser("prepare", help="prepare one training set, as its stage does")
    prepare.add_argument("group", choices=["pretrain", "sft"])
    prepare.add_argument("name", help="a dataset of data.GROUP")
    arguments = parser.parse_args()
    data = _data(arguments.scale)
    if arguments.verb == "sources":
        print(overview(data, RAW, missing=arguments.missing))
    elif arguments.verb == "fetch":
        for name in arguments.names:
            source = parse_params(_entry(data, f"sources.{name}"), Source, f"data.sources.{name}")
            params = parse_params(_entry(data, "fetch"), FetchParams, "data.fetch")
            fetch_source(name, source, RAW / f"{name}.json", params, SourcesLock(LOCK))
    else:
        key = f"{arguments.group}.{arguments.name}"
        prepare_dataset(
            parse_params(_entry(data, key), DatasetParams, f"data.{key}"),
            Path("data") / arguments.group / arguments.name,
            Path("metrics/data") / f"{arguments.group}_{arguments.name}.json",
        )


def _data(scale: str | None) -> DictConfig:
    """The section ``data`` of params.yaml, or of ``conf/`` composed with ``scale``."""
    if scale is None:
        path = Path("params.yaml")
        if not path.is_file():
            raise UserError("params.yaml is missing: run python src/compose_params.py")
        params: Any = OmegaConf.load(path)
    else:
        params = OmegaConf.create(composed([f"scale={scale}"]))
    data: DictConfig = params.data
    return data


def _entry(data: DictConfig, key: str) -> DictConfig:
    found: DictConfig | None = OmegaConf.select(data, key)
    if found is None:
        group = key.partition(".")[0]
        names = ", ".join(sorted(OmegaConf.select(data, group) or [])) or "none"
        raise UserError(f"data.{key} is not in the parameters; there is {names} (try --scale full)")
    return found


if __name__ == "__main__":
    run_command(main)
