"""What a checkpoint is a checkpoint of: the shapes of tower, projector and decoder.

Names follow Megatron-core (``query_groups``, ``ffn_hidden_size``), because these checkpoints do.
"""

from __future__ import annotations

from dataclasses import dataclass

# Both NVLM decoders and their differences; the family also names the transformers class.
FAMILIES = ("llama", "qwen2")
# Of the tower's layers: "rms_norm" has a weight, "layer_norm" a bias too (and subtracts the mean).
NORM_TYPES = ("rms_norm", "layer_norm")
# Pixel shuffle puts 2x2 neighbouring patches on the channel dimension (paper section 4.1).
PIXEL_SHUFFLE = 2


@dataclass(frozen=True, kw_only=True)
class VisionArchitecture:
    """InternViT, with layer scale: the 6B's traits by default.

    InternViT-300M has LayerNorm, a QKV bias, and no QK norm.
    """

    hidden_size: int
    layers: int
    heads: int
    ffn_hidden_size: int
    image_size: int  # pixels, both sides of a tile
    patch_size: int  # pixels
    norm_epsilon: float
    norm_type: str = "rms_norm"
    qkv_bias: bool = False
    qk_norm: bool = True  # RMSNorm of queries and keys, over all heads

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.heads

    @property
    def patches(self) -> int:
        """Patches a tile, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens a tile after pixel shuffle: 256 for InternViT-6B at 448 pixels."""
        return self.patches // PIXEL_SHUFFLE**2

    @property
    def feature_size(self) -> int:
        """Channels of a visual token after pixel shuffle: 12,800 for InternViT-6B."""
        return self.hidden_size * PIXEL_SHUFFLE**2


@dataclass(frozen=True, kw_only=True)
class LanguageArchitecture:
    """A Llama or Qwen2 decoder. Qwen2 adds a bias to queries, keys and values."""

    family: str
    hidden_size: int
    layers: int
    heads: int
    query_groups: int  # key/value heads
    ffn_hidden_size: int
    norm_epsilon: float
    rope_theta: float
    vocabulary: int  # rows of the Hugging Face embedding
    max_positions: int
    tied_embeddings: bool = False  # whether the head is the embedding's very matrix

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.heads

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have a bias."""
        return self.family == "qwen2"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A whole model, or one half of it before ``combine``. The projector's shape follows:

    features (4 x vision hidden) -> decoder FFN size -> decoder hidden size (paper section 4.1).
    """

    vision: VisionArchitecture | None = None
    language: LanguageArchitecture | None = None
