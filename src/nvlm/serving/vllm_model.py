"""vLLM's NVLM_D with another prompt update; imported by vLLM alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.model_executor.models.nvlm_d import (
    NVLM_D_Model,
    NVLMDummyInputsBuilder,
    NVLMMultiModalProcessor,
    NVLMProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails, cached_encode

from nvlm.serving.prompt import image_ids


class TrainedPromptsProcessor(NVLMMultiModalProcessor):
    """Puts the token ids of training in an image's place."""

    def _get_prompt_repl_image(
        self, mm_items: Any, hf_processor: Any, out_mm_data: Mapping[str, Any]
    ) -> PromptReplacement:
        if "image_num_patches" not in out_mm_data:  # embeddings, which vLLM refuses
            return super()._get_prompt_repl_image(mm_items, hf_processor, out_mm_data)
        tokenizer = self.info.get_tokenizer()
        counts = out_mm_data["image_num_patches"].tolist()

        def encode(text: str) -> list[int]:
            return list(cached_encode(tokenizer, text, add_special_tokens=False))

        def replacement(item: int) -> PromptUpdateDetails:
            ids = image_ids(
                encode,
                tiles=counts[item],
                tokens_per_tile=hf_processor.image_seq_length,
                image_token_id=hf_processor.ctx_image_token_id,
            )
            return PromptUpdateDetails.select_token_id(ids, hf_processor.ctx_image_token_id)

        return PromptReplacement(
            modality="image", target=encode("<image>\n"), replacement=replacement
        )


@MULTIMODAL_REGISTRY.register_processor(
    TrainedPromptsProcessor, info=NVLMProcessingInfo, dummy_inputs=NVLMDummyInputsBuilder
)
class TrainedPromptsNVLM(NVLM_D_Model):
    """The same model."""
