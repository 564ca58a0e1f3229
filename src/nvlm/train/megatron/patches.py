"""What has to be changed in Megatron-LM's example, at the pinned revision, for a stage to run.

Found by reading; docs/megatron.md says what of it was run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nvlm.checkpoint.format.architecture import LanguageArchitecture
from nvlm.train.params import TrainParams

PROJECTOR_EPSILON = 1e-5  # of the projector's LayerNorm (nvlm.model.vision), PyTorch's default
SHUFFLE_BUFFER = 100  # upstream's, a number in its code


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One change, and why."""

    file: str
    change: str
    reason: str
    applies: Callable[[TrainParams, LanguageArchitecture], bool] = lambda params, decoder: True


PATCHES = (
    Patch(
        file="examples/multimodal/train.py",
        change="import pretrain_cfg_container_from_args from megatron.training.argument_utils, and "
        "give full_config to pretrain() as its first argument",
        reason="it is called and not imported, and pretrain() takes it first: nothing starts",
    ),
    Patch(
        file="examples/multimodal/dataloader_provider.py",
        change="make no validation sets where args.eval_iters is 0",
        reason="get_val_datasets asks for a split val, and our metadatasets have train alone: "
        "KeyError",
    ),
    Patch(
        file="examples/multimodal/dataloader_provider.py",
        change="torch.load(data_save_name, map_location='cpu', weights_only=False)",
        reason="PyTorch refuses Energon's classes otherwise, which the run itself has saved "
        "(another's file could run code); the error is printed and passed over, and a run that "
        "resumes reads its data from the start",
    ),
    Patch(
        file="examples/multimodal/dataset_helpers.py",
        change="in encode_sample, tokenize the turns of "
        "nvlm.data.loading.conversations.conversation_of(sample, rng, 'chatml', size), whatever "
        "the sample's type",
        reason="its own have another system turn, lack the words of the dataset's task after a "
        "question, and go by words in a sample's key: an OCR sample of ours fails and is skipped",
    ),
    Patch(
        file="megatron/core/models/multimodal/llava_model.py",
        change="in _apply_tile_tagging, tag the tiles of each image of num_image_tiles",
        reason="it asserts one image a sample: a conversation over two ends the run",
        applies=lambda params, decoder: params.data.tile_tags,
    ),
    Patch(
        file="megatron/core/models/vision/clip_vit_model.py",
        change='in get_num_image_embeddings, name "nvlm-yi-34b" among the prompt formats whose '
        "tags have 5 tokens",
        reason="it is not, since 2025-03: ValueError (tokenizer type not defined)",
        applies=lambda params, decoder: params.data.tile_tags and decoder.family == "llama",
    ),
    Patch(
        file="examples/multimodal/train.py",
        change="in get_batch, count the tiles before imgs becomes None on the last stage",
        reason="sequence parallelism needs the count there: AttributeError",
        applies=lambda params, decoder: (
            params.sequence_parallel and params.grid.tensor > 1 and params.grid.pipeline > 1
        ),
    ),
    Patch(
        file="examples/multimodal/config.py",
        change=f"in get_vision_projection_config, layernorm_epsilon = {PROJECTOR_EPSILON:g}",
        reason="the projector's LayerNorm takes the decoder's epsilon there; ours, as NVIDIA's own "
        "code for the released model, has 1e-5",
        applies=lambda params, decoder: decoder.norm_epsilon != PROJECTOR_EPSILON,
    ),
    Patch(
        file="examples/multimodal/dataloader_provider.py",
        change="shuffle_buffer_size becomes data.shuffle_buffer of the stage",
        reason=f"{SHUFFLE_BUFFER} stands there, and no flag says another",
        applies=lambda params, decoder: params.data.shuffle_buffer != SHUFFLE_BUFFER,
    ),
)


def patches_for(params: TrainParams, decoder: LanguageArchitecture) -> list[Patch]:
    """Those without which this stage fails or trains something else."""
    return [patch for patch in PATCHES if patch.applies(params, decoder)]
