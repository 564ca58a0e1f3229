"""The training stream: weighted datasets, shuffled, encoded, packed; its state can be saved.

Energon is imported where a loader is built: whether a blend is there is asked before any rank
starts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.data.loading.params import LoaderParams
from nvlm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Consecutive samples of a shard that are read at once. Fewer shuffle better, more read faster.
SAMPLES_PER_SLICE = 100
LEFT_OUT = "left_out.json"


def build_loader(
    root: Path,
    params: LoaderParams,
    *,
    tokenizer: PreTrainedTokenizerFast,
    architecture: Architecture,
    rows: int,
    rank: int,
    world: int,
) -> Any:
    """Energon's savable loader of endless batches (nvlm.data.loading.batch.Batch) of ``rows`` rows.

    ``root`` holds a prepared dataset for each name of the blend. The stream is a function of the
    datasets' bytes, ``params``, ``rows``, and of ``rank`` out of ``world`` data-parallel readers,
    which share out the samples. Raises UserError for a name that is not there.
    """
    check_blend(root, params)
    import torch
    from megatron.energon import WorkerConfig, get_savable_loader
    from megatron.energon.errors import reraise_exception

    from nvlm.data.loading.encoder import PACKING_BUFFER, NVLMEncoder

    workers = WorkerConfig(
        rank=rank,
        world_size=world,
        num_workers=params.workers,
        seed_offset=params.seed,
        # By default Energon logs what fails and goes on, with a sample less and a shifted stream.
        global_error_handler=reraise_exception,
    )
    encoder = NVLMEncoder(params, tokenizer, architecture, excluded=left_out(root))
    datasets = _blend(root, params).get_datasets(
        training=True,
        split_part="train",
        worker_config=workers,
        max_samples_per_sequence=SAMPLES_PER_SLICE,
        decoder=encoder.decoder,
    )
    stream = encoder.build_train_datasets(
        datasets=datasets.datasets,
        blend_mode=datasets.blend_mode,
        worker_config=workers,
        batch_size=rows,
        shuffle_buffer_size=params.shuffle_buffer,
        packing_buffer_size=PACKING_BUFFER if params.packing else None,
    )
    loader = get_savable_loader(stream, watchdog_timeout_seconds=None)
    loader.pin_memory = torch.cuda.is_available()  # Energon asks for it always; a CPU has none
    return loader


def left_out(root: Path) -> frozenset[str]:
    """Samples, as DATASET/KEY, that are not to be read: src/find_overlap.py lists, beside ``root``,
    those that show a picture of an evaluation set."""
    path = root.parent / LEFT_OUT
    if not path.is_file():
        return frozenset()
    listed: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    own = f"{root.name}/"
    return frozenset(
        f"{name.removeprefix(own)}/{key}"
        for name, keys in listed.items()
        if name.startswith(own)
        for key in keys
    )


def blend_text(root: Path, params: LoaderParams, directory: Path) -> str:
    """The blend as the YAML file of an Energon metadataset that is to lie in ``directory``.

    Megatron's own loader takes such a file where it takes a dataset.
    """
    lines = ["__module__: megatron.energon", "__class__: MetadatasetV2"]
    lines += ["splits:", "  train:", "    blend:"]
    for name, weight in sorted(params.blend.items()):
        path = os.path.relpath(root / name, directory)
        lines.append(f"      - {{weight: {weight}, path: {json.dumps(path)}}}")
    return "\n".join(lines) + "\n"


def _blend(root: Path, params: LoaderParams) -> Any:
    """The blend as an Energon metadataset, as a YAML file beside the datasets would define it."""
    from megatron.energon.epathlib import EPath
    from megatron.energon.metadataset.metadataset_v2 import (
        BlendDatasetReference,
        MetadatasetBlend,
        MetadatasetV2,
    )

    blend = [
        BlendDatasetReference(path=name, weight=weight)
        for name, weight in sorted(params.blend.items())
    ]
    metadataset = MetadatasetV2(
        path=EPath(root.absolute() / "blend.yaml"), splits={"train": MetadatasetBlend(blend=blend)}
    )
    metadataset.post_initialize()
    return metadataset


def check_blend(root: Path, params: LoaderParams) -> None:
    """Raise UserError if a dataset of the blend is not in ``root``, or was not prepared."""
    prepared = sorted(path.parents[1].name for path in root.glob("*/.nv-meta/index.uuid"))
    for name in params.blend:
        if name not in prepared:
            raise UserError(
                f"data.blend.{name}: {root} holds no prepared dataset of that name, but "
                f"{', '.join(prepared) or 'none'}: run the stage that prepares it, or leave it out "
                "of the blend in conf/data"
            )
