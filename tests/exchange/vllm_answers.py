"""Answers of vLLM in this very process, for bodies of chat requests: run by vLLM's own Python.

Run with: python vllm_answers.py EXPORT BODIES.json ANSWERS.json
"""

import json
import sys
from pathlib import Path

import torch

# The package index has torchvision for CUDA alone: beside PyTorch for CPUs its operators lack.
operators = torch.library.Library("torchvision", "DEF")
operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from vllm import LLM, SamplingParams  # noqa: E402


def main() -> None:
    export, bodies, answers = map(Path, sys.argv[1:])
    asked = json.loads(bodies.read_text())
    assert not any("mm_processor_kwargs" in body for body in asked)
    model = LLM(
        str(export), trust_remote_code=True, dtype="float32", max_model_len=2048, enforce_eager=True
    )
    params = [
        SamplingParams(
            temperature=body["temperature"],
            max_tokens=body["max_tokens"],
            repetition_penalty=body["repetition_penalty"],
        )
        for body in asked
    ]
    outputs = model.chat([body["messages"] for body in asked], params, use_tqdm=False)
    answers.write_text(json.dumps([output.outputs[0].text.strip() for output in outputs]))


if __name__ == "__main__":
    main()
