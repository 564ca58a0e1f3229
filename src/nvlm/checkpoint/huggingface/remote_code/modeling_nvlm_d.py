"""NVLM-D for transformers (``trust_remote_code``): InternViT, pixel shuffle, projector, decoder.

Written against the tensor names and shapes of nvidia/NVLM-D-72B. Shapes: N tiles, P patches a tile,
C channels of the tower, D head size, B rows, S positions, H decoder hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_nvlm_d import InternVisionConfig, NVLM_D_Config, NVLM_D_Yi_Config

IMAGE_TOKEN = "<|vision_pad|>"
SYSTEM = "Follow the user's instruction and answer questions."  # of every trained conversation


class InternRMSNorm(nn.Module):
    """Root mean square over the first ``real`` channels; those after them are dummy heads'."""

    def __init__(self, channels: int, eps: float, real: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps, self.real = eps, real or channels

    def forward(self, hidden: Tensor) -> Tensor:
        """Channels last, any shape before."""
        wide = hidden.float()
        variance = wide[..., : self.real].pow(2).mean(-1, keepdim=True)
        return self.weight * (wide * torch.rsqrt(variance + self.eps)).to(hidden.dtype)


def norm(config: InternVisionConfig) -> nn.Module:
    """A layer's norm: RMSNorm of the 6B, LayerNorm of the 300M."""
    kind = nn.LayerNorm if config.norm_type == "layer_norm" else InternRMSNorm
    return kind(config.hidden_size, eps=config.layer_norm_eps)


class InternAttention(nn.Module):
    """Attention over real heads and dummy ones, whose weights are zeros."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.heads = config.num_attention_heads + config.num_dummy_heads
        self.head_size = hidden // config.num_attention_heads
        padded = self.heads * self.head_size
        self.qkv = nn.Linear(hidden, 3 * padded, bias=config.qkv_bias)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_normalization:
            self.q_norm = InternRMSNorm(padded, 1e-6, hidden)
            self.k_norm = InternRMSNorm(padded, 1e-6, hidden)
        self.proj = nn.Linear(padded, hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, 1 + P, C) to the same shape."""
        query, key, value = self.qkv(hidden).chunk(3, dim=-1)
        split = (*hidden.shape[:2], self.heads, self.head_size)
        q, k, v = (
            x.view(split).transpose(1, 2) for x in (self.q_norm(query), self.k_norm(key), value)
        )
        context = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(context.transpose(1, 2).flatten(2))


class InternMLP(nn.Module):
    """Two linear layers with biases around a GELU."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, 1 + P, C) to the same shape."""
        return self.fc2(functional.gelu(self.fc1(hidden)))


class InternLayer(nn.Module):
    """Pre-norm attention and MLP, each scaled per channel before it is added."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.attn, self.mlp = InternAttention(config), InternMLP(config)
        self.norm1, self.norm2 = norm(config), norm(config)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.ones(hidden))

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, 1 + P, C) to the same shape."""
        hidden = hidden + self.attn(self.norm1(hidden)) * self.ls1
        return hidden + self.mlp(self.norm2(hidden)) * self.ls2


class InternEmbeddings(nn.Module):
    """A class token and the patches of a tile, with learnt positions."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        hidden, patch = config.hidden_size, config.patch_size
        patches = (config.image_size // patch) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, hidden))
        self.patch_embedding = nn.Conv2d(3, hidden, kernel_size=patch, stride=patch)
        self.position_embedding = nn.Parameter(torch.zeros(1, patches + 1, hidden))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pixels (N, 3, height, width) to (N, 1 + P, C)."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # (N, P, C)
        token = self.class_embedding.expand(patches.shape[0], -1, -1)
        return torch.cat([token, patches], dim=1) + self.position_embedding


class InternEncoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(InternLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, 1 + P, C) to the same shape."""
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class InternVisionModel(nn.Module):
    """The tower: pixels (N, 3, height, width) to (N, 1 + P, C)."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.embeddings = InternEmbeddings(config)
        self.encoder = InternEncoder(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pixels (N, 3, height, width) to (N, 1 + P, C)."""
        return self.encoder(self.embeddings(pixel_values))


class NVLM_D_Model(PreTrainedModel):  # noqa: N801
    """The whole model. Each tile gives ``num_image_token`` tokens to the decoder.

    The class has the name that the published repo knows.
    """

    config_class: type[NVLM_D_Config] = NVLM_D_Config
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["InternLayer", "Qwen2DecoderLayer", "LlamaDecoderLayer"]  # noqa: RUF012

    def __init__(self, config: NVLM_D_Config) -> None:
        super().__init__(config)
        vision, language = config.vision_config, config.llm_config
        shuffle = round(1 / config.downsample_ratio)
        features = vision.hidden_size * shuffle**2
        self.shuffle = shuffle
        self.num_image_token = (vision.image_size // vision.patch_size // shuffle) ** 2
        self.vision_model = InternVisionModel(vision)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(features),
            nn.Linear(features, language.intermediate_size, bias=False),
            nn.GELU(),
            nn.Linear(language.intermediate_size, language.hidden_size, bias=False),
        )
        # Or else the decoder would be of its stored dtype, whatever from_pretrained(dtype=) asks.
        self.language_model = AutoModelForCausalLM.from_config(
            language, dtype=torch.get_default_dtype()
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's embedding."""
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The decoder's head."""
        return self.language_model.get_output_embeddings()

    def extract_feature(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels (N, 3, height, width) to decoder inputs (N, P / 4, H)."""
        patches = self.vision_model(pixel_values)[:, 1:]
        count, length, channels = patches.shape
        half, s = int(length**0.5) // self.shuffle, self.shuffle
        grid = patches.reshape(count, half, s, half, s, channels).permute(0, 1, 3, 2, 4, 5)
        return self.mlp1(grid.reshape(count, half * half, channels * s * s))

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None) -> Tensor:
        """Token ids (B, S) to decoder inputs (B, S, H), features in the image token's places.

        Raises ValueError unless there are as many places as features.
        """
        places = input_ids == self.config.image_token_id
        inputs = self.get_input_embeddings()(input_ids.masked_fill(places, 0))
        if pixel_values is None:
            return inputs
        features = self.extract_feature(pixel_values).flatten(0, 1)
        if int(places.sum()) != features.shape[0]:
            raise ValueError(
                f"{int(places.sum())} image tokens in input_ids for {features.shape[0]} features"
            )
        return inputs.masked_scatter(places.unsqueeze(-1), features.to(inputs.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, S, vocabulary); other arguments are the decoder's (masks, labels, cache)."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, pixel_values)
        return self.language_model(inputs_embeds=inputs_embeds, **kwargs)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """New token ids (B, new) after prompts (B, S); arguments of the decoder's ``generate``."""
        return self.language_model.generate(
            inputs_embeds=self.embed(input_ids, pixel_values), **kwargs
        )

    def chat(
        self, tokenizer: Any, pixel_values: Tensor | None, question: str, **generation: Any
    ) -> str:
        """Answer ``question`` about one image cut into tiles (the thumbnail last), or about none.

        ``<image>`` says where the image belongs; it comes first by default.
        """
        if pixel_values is not None:
            if "<image>" not in question:
                question = f"<image>\n{question}"
            question = question.replace("<image>", self._image_prompt(len(pixel_values)), 1)
        turns = (("system", SYSTEM), ("user", question))
        prompt = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
        if self.config.model_type == "NVLM_D_Yi":
            prompt = (tokenizer.bos_token or "") + prompt
        inputs = tokenizer(
            f"{prompt}<|im_start|>assistant\n", add_special_tokens=False, return_tensors="pt"
        )
        stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
        settings = {"max_new_tokens": 256, "do_sample": False, **generation}
        new = self.generate(
            inputs["input_ids"].to(self.device),
            pixel_values,
            attention_mask=inputs["attention_mask"].to(self.device),
            generation_config=GenerationConfig(eos_token_id=stop, pad_token_id=stop, **settings),
        )
        return tokenizer.decode(new[0], skip_special_tokens=True).strip()

    def _image_prompt(self, tiles: int) -> str:
        thumbnail = "<tile_global_thumbnail>"
        if self.config.model_type == "NVLM_D_Yi":
            thumbnail = "<tile_global>"
        tags = [*(f"<tile_{tile}>" for tile in range(1, tiles)), thumbnail]
        tokens = IMAGE_TOKEN * self.num_image_token
        return f"<Image>{''.join(tag + tokens for tag in tags)}</Image>"


class NVLM_D_Yi_Model(NVLM_D_Model):  # noqa: N801
    """The same with a Llama decoder; AutoModel wants a class for each configuration."""

    config_class = NVLM_D_Yi_Config
