"""Entry point of group ``vllm.general_plugins``: NVLM_D with prompts of exactly the trained ids.

``pip install --no-deps .`` beside vLLM, whose transformers is older than the project's; vLLM then
loads it by itself. Written against vLLM 0.32 (0.33 has the same lines).
"""

from __future__ import annotations


def register() -> None:
    """Let vLLM serve NVLM_D by our subclass; it imports that when such a model is loaded."""
    from vllm import ModelRegistry

    ModelRegistry.register_model("NVLM_D", "nvlm.serving.vllm_model:TrainedPromptsNVLM")
