"""The training stream: weighted datasets, shuffled, encoded, packed; its state can be saved.

Energon is imported where a loader is built: whether a blend is there is asked before any rank
starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.data.loading.blend import Blend, find_blend, left_out
from nvlm.data.loading.params import LoaderParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Consecutive samples of a shard that are read at once. Fewer shuffle better, more read faster.
SAMPLES_PER_SLICE = 100


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

    ``root`` holds a prepared dataset for each name of the blend that is to be had. The stream is a
    function of the datasets' bytes, ``params``, ``rows``, and of ``rank`` out of ``world``
    data-parallel readers, which share out the samples. Raises UserError for a name that is not
    there.
    """
    blend = find_blend(root, params.blend)
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
    datasets = _metadataset(blend).get_datasets(
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


def _metadataset(blend: Blend) -> Any:
    """The blend as an Energon metadataset, as a YAML file beside the datasets would define it."""
    from megatron.energon.epathlib import EPath
    from megatron.energon.metadataset.metadataset_v2 import (
        BlendDatasetReference,
        MetadatasetBlend,
        MetadatasetV2,
    )

    references = [
        BlendDatasetReference(path=name, weight=weight) for name, weight in blend.weights.items()
    ]
    metadataset = MetadatasetV2(
        path=EPath(blend.root.absolute() / "blend.yaml"),
        splits={"train": MetadatasetBlend(blend=references)},
    )
    metadataset.post_initialize()
    return metadataset
