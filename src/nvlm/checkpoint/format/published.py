"""The architectures of the published models, for what is computed without their weights.

Conversion reads them from each model's own config.json; these are the same values.
"""

from __future__ import annotations

from dataclasses import replace

from nvlm.checkpoint.format.architecture import (
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)

# OpenGVLab/InternViT-6B-448px-V1-5.
INTERNVIT_6B = VisionArchitecture(
    hidden_size=3200,
    layers=45,
    heads=25,
    ffn_hidden_size=12800,
    image_size=448,
    patch_size=14,
    norm_epsilon=1e-6,
)
# NousResearch/Nous-Hermes-2-Yi-34B.
YI_34B = LanguageArchitecture(
    family="llama",
    hidden_size=7168,
    layers=60,
    heads=56,
    query_groups=8,
    ffn_hidden_size=20480,
    norm_epsilon=1e-5,
    rope_theta=5e6,
    vocabulary=64000,
    max_positions=4096,
)
# Qwen/Qwen2-72B-Instruct.
QWEN2_72B = LanguageArchitecture(
    family="qwen2",
    hidden_size=8192,
    layers=80,
    heads=64,
    query_groups=8,
    ffn_hidden_size=29568,
    norm_epsilon=1e-6,
    rope_theta=1e6,
    vocabulary=152064,
    max_positions=32768,
)
# OpenGVLab/InternViT-300M-448px.
INTERNVIT_300M = VisionArchitecture(
    hidden_size=1024,
    layers=24,
    heads=16,
    ffn_hidden_size=4096,
    image_size=448,
    patch_size=14,
    norm_epsilon=1e-6,
    norm_type="layer_norm",
    qkv_bias=True,
    qk_norm=False,
)
# 01-ai/Yi-1.5-6B-Chat.
YI_6B = LanguageArchitecture(
    family="llama",
    hidden_size=4096,
    layers=32,
    heads=32,
    query_groups=4,
    ffn_hidden_size=11008,
    norm_epsilon=1e-6,  # Yi-1.5's; Yi's is 1e-5
    rope_theta=5e6,
    vocabulary=64000,
    max_positions=4096,
)
# Qwen/Qwen2-7B-Instruct, and the two smaller ones, whose embeddings are tied.
QWEN2_7B = LanguageArchitecture(
    family="qwen2",
    hidden_size=3584,
    layers=28,
    heads=28,
    query_groups=4,
    ffn_hidden_size=18944,
    norm_epsilon=1e-6,
    rope_theta=1e6,
    vocabulary=152064,
    max_positions=32768,
)
QWEN2_1_5B = replace(
    QWEN2_7B,
    hidden_size=1536,
    heads=12,
    query_groups=2,
    ffn_hidden_size=8960,
    vocabulary=151936,
    tied_embeddings=True,
)
QWEN2_0_5B = replace(QWEN2_1_5B, hidden_size=896, layers=24, heads=14, ffn_hidden_size=4864)
# By the branch of the recipe, at each scale that has published models.
PUBLISHED = {
    "34b": Architecture(vision=INTERNVIT_6B, language=YI_34B),
    "72b": Architecture(vision=INTERNVIT_6B, language=QWEN2_72B),
}
SCALES = {
    "full": PUBLISHED,
    "node": {
        "34b": Architecture(vision=INTERNVIT_300M, language=YI_6B),
        "72b": Architecture(vision=INTERNVIT_300M, language=QWEN2_7B),
    },
    "card": {
        "34b": Architecture(vision=INTERNVIT_300M, language=QWEN2_0_5B),
        "72b": Architecture(vision=INTERNVIT_300M, language=QWEN2_1_5B),
    },
}
