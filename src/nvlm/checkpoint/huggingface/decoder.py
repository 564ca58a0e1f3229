"""The decoder alone of an NVLM_D directory, as a plain Hugging Face model: for text benchmarks.

Both our exports and nvidia/NVLM-D-72B itself are read. What is written needs no remote code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from nvlm.checkpoint.format.files import (
    bytes_of,
    link_file,
    new_checkpoint,
    read_tensors,
    safetensors_header,
)
from nvlm.checkpoint.format.layout import LANGUAGE
from nvlm.checkpoint.format.writing import write_files
from nvlm.checkpoint.huggingface.exporting import write_json
from nvlm.checkpoint.huggingface.importing import read_architecture
from nvlm.checkpoint.huggingface.nvlm_d import TABLES, all_shapes
from nvlm.checkpoint.huggingface.weights import INDEX, HuggingFaceWeights, read_json
from nvlm.errors import UserError

# Beside the weights: whatever of these there is. Nothing else of an export is about its text.
TOKENIZER = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
PREFIX = f"{LANGUAGE}."


def has_tower(directory: Path) -> bool:
    """Whether the Hugging Face model in ``directory`` is more than a decoder."""
    return "vision_config" in read_json(directory / "config.json")


def extract_decoder(source: Path, destination: Path) -> None:
    """Write the decoder of the NVLM_D directory ``source`` for ``AutoModelForCausalLM``.

    A file of the source at a time becomes one of the same name, without the other halves' tensors
    and without the vocabulary's rows behind the trained ones (of zeros: they would take part in
    every softmax). Raises UserError if ``source`` is no such model or is not whole.
    """
    architecture, stored_rows = read_architecture(source)
    assert architecture.language is not None
    weights = HuggingFaceWeights(source)
    weights.check(all_shapes(architecture, stored_rows))
    if not (source / "tokenizer.json").is_file():
        raise UserError(f"{source} has no tokenizer.json: export or download the model again")
    rows = architecture.language.vocabulary
    placed: dict[str, list[str]] = defaultdict(list)
    for name, file in weights.files.items():
        if name.startswith(PREFIX):
            placed[file].append(name)
    with new_checkpoint(destination) as directory:
        tasks: Iterator[Callable[[], tuple[Path, int]]] = (
            partial(_write, source / file, directory / file, names, rows)
            for file, names in placed.items()
        )
        total = sum((source / file).stat().st_size for file in placed)
        written = sum(write_files(tasks, total, "decoder"))
        files = {
            name.removeprefix(PREFIX): file for file, names in placed.items() for name in names
        }
        write_json(directory / INDEX, {"metadata": {"total_size": written}, "weight_map": files})
        config = read_json(source / "config.json")["llm_config"]
        write_json(directory / "config.json", {**config, "vocab_size": rows})
        for name in TOKENIZER:
            if (source / name).is_file():
                link_file(source, directory, name)


def _write(source: Path, path: Path, names: list[str], rows: int) -> tuple[Path, int]:
    """Copy ``names`` of the file ``source``; returns ``path`` and the tensors' bytes."""
    found = read_tensors(source)  # mapped: what is not copied is not read
    tensors: dict[str, Tensor] = {
        name.removeprefix(PREFIX): found[name][:rows] if name in TABLES else found[name]
        for name in names
    }
    with path.open("xb") as file:
        # transformers refuses a file without this note.
        file.write(safetensors_header(tensors, {"format": "pt"}))
        return path, sum(file.write(bytes_of(tensor)) for tensor in tensors.values())
