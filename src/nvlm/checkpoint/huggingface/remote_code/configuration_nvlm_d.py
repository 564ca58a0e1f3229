"""Configuration of an exported NVLM-D model (loaded by transformers with ``trust_remote_code``)."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import LlamaConfig, PretrainedConfig, Qwen2Config


class InternVisionConfig(PretrainedConfig):
    """The InternViT tower. Its tensors carry dummy heads beside ``num_attention_heads``."""

    model_type = "intern_vit_6b"

    def __init__(
        self,
        *,
        hidden_size: int = 3200,
        num_hidden_layers: int = 45,
        num_attention_heads: int = 25,
        num_dummy_heads: int = 7,
        intermediate_size: int = 12800,
        image_size: int = 448,
        patch_size: int = 14,
        layer_norm_eps: float = 1e-6,
        norm_type: str = "rms_norm",
        qkv_bias: bool = False,
        qk_normalization: bool = True,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_dummy_heads = num_dummy_heads
        self.intermediate_size = intermediate_size
        self.image_size = image_size
        self.patch_size = patch_size
        self.layer_norm_eps = layer_norm_eps
        self.norm_type = norm_type  # or "layer_norm"
        self.qkv_bias = qkv_bias
        self.qk_normalization = qk_normalization
        # What InternViT is, in the words that other programs look for.
        self.hidden_act = "gelu"
        self.initializer_factor = 0.1
        self.use_flash_attn = True
        super().__init__(**kwargs)


class NVLM_D_Config(PretrainedConfig):  # noqa: N801
    """A tower, a projector as wide as the decoder's FFN, and a Qwen2 decoder.

    The class has the name that vLLM and the published repo know.
    """

    model_type = "NVLM_D"
    language_config_class: ClassVar[type[PretrainedConfig]] = Qwen2Config

    def __init__(
        self,
        *,
        vision_config: dict[str, Any] | InternVisionConfig | None = None,
        llm_config: dict[str, Any] | PretrainedConfig | None = None,
        image_token_id: int | None = None,
        force_image_size: int = 448,
        downsample_ratio: float = 0.5,
        max_dynamic_patch: int = 6,
        **kwargs: Any,
    ) -> None:
        if not isinstance(vision_config, PretrainedConfig):
            vision_config = InternVisionConfig(**(vision_config or {}))
        if not isinstance(llm_config, PretrainedConfig):
            llm_config = self.language_config_class(**(llm_config or {}))
        self.vision_config = vision_config
        self.llm_config = llm_config
        self.image_token_id = image_token_id  # a tile's features take this token's places
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        self.max_dynamic_patch = max_dynamic_patch
        self.min_dynamic_patch = 1
        self.dynamic_image_size = True
        self.use_thumbnail = True
        self.ps_version = "v2"
        self.select_layer = -1
        self.template = "chatml"
        super().__init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The decoder's configuration, under the name that transformers asks for."""
        del args, kwargs
        return self.llm_config


class NVLM_D_Yi_Config(NVLM_D_Config):  # noqa: N801
    """The same with a Llama decoder: Nous-Hermes-2-Yi-34B."""

    model_type = "NVLM_D_Yi"
    language_config_class: ClassVar[type[PretrainedConfig]] = LlamaConfig

    def __init__(self, **kwargs: Any) -> None:
        # transformers 5 makes a dataclass of a configuration that has no __init__ of its own.
        super().__init__(**kwargs)
