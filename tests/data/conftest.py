"""What the tests of the data share: small datasets, a tokenizer of bytes, tiny shapes."""

import json

import pytest
from tests.data.small import byte_tokenizer, small_architecture

from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.prepare import prepare_dataset


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="session")
def architecture():
    return small_architecture()


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """A directory of prepared datasets, one of each sample type."""
    root = tmp_path_factory.mktemp("sft")
    for name, source in [
        ("captions", "shape_captions"),
        ("strips", "digit_questions"),
        ("choices", "choices"),
    ]:
        params = DatasetParams(
            source=source,
            requires="packages",
            samples=60,
            samples_per_shard=25,
            max_skipped=0.0,
        )
        prepare_dataset(params, root / name, root.parent / f"{name}.json")
    return root


@pytest.fixture
def directory_of_records(tmp_path):
    """A function that lays out a dataset: annotations (dicts or raw lines) and image files."""

    def lay_out(annotations, images):
        directory = tmp_path / "raw"
        (directory / "images").mkdir(parents=True)
        lines = [
            line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)
            for line in annotations
        ]
        (directory / "annotations.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for name, data in images.items():
            (directory / "images" / name).write_bytes(data)
        return directory

    return lay_out
