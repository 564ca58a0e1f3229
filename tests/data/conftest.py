"""What the tests of the data share: small datasets, a tokenizer of bytes, tiny shapes."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nvlm.checkpoint.architecture import Architecture, LanguageArchitecture, VisionArchitecture
from nvlm.data.datasets import DatasetParams
from nvlm.data.prepare import prepare_dataset


@pytest.fixture(scope="session")
def tokenizer():
    """A token a byte, and ChatML."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def architecture():
    """Tiles of 48 pixels, four visual tokens each."""
    return Architecture(
        vision=VisionArchitecture(
            hidden_size=12,
            layers=1,
            heads=3,
            ffn_hidden_size=24,
            image_size=48,
            patch_size=12,
            norm_epsilon=1e-6,
        ),
        language=LanguageArchitecture(
            family="qwen2",
            hidden_size=16,
            layers=1,
            heads=2,
            query_groups=1,
            ffn_hidden_size=32,
            norm_epsilon=1e-6,
            rope_theta=1e4,
            vocabulary=258,
            max_positions=512,
        ),
    )


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
