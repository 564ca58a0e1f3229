"""The architectures of the published models, for what is computed without their weights.

Conversion reads them from each model's own config.json; these are the same values.
"""

from __future__ import annotations

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
# By the branch of the recipe.
PUBLISHED = {
    "34b": Architecture(vision=INTERNVIT_6B, language=YI_34B),
    "72b": Architecture(vision=INTERNVIT_6B, language=QWEN2_72B),
}
