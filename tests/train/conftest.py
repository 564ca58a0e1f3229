"""A small dataset, and a checkpoint whose tokenizer can read it."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.prepare import prepare_dataset
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh


def prepare_shapes(root: Path) -> None:
    """Sixty questions about pictures as the dataset ``root``/shapes."""
    params = DatasetParams(
        source="shape_questions",
        requires="packages",
        samples=60,
        samples_per_shard=30,
        max_skipped=0,
    )
    prepare_dataset(params, root / "shapes", root.parent / "shapes.json")


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    prepare_shapes(root)
    return root


@pytest.fixture(scope="session")
def byte_tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


@pytest.fixture(scope="module")
def mesh():
    """That of one process: this one."""
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    place["MASTER_PORT"] = "0"
    with pytest.MonkeyPatch.context() as environment:
        for name, value in place.items():
            environment.setenv(name, value)
        running = parallel_mesh(GridParams(tensor=1))
        mesh = running.__enter__()
    yield mesh
    running.__exit__(None, None, None)
