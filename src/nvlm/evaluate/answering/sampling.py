"""Sampling that depends on the seed and the question alone, not on the batch it is asked in.

Adding Gumbel noise to the logits and taking the largest draws from their softmax (Gumbel 1954), so
that the greedy path of ``generate`` samples. Each row draws its noise from a generator of its own;
``torch.multinomial`` would draw for the whole batch from one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, TopPLogitsWarper

from nvlm.evaluate.params import SamplingParams
from nvlm.evaluate.question import QuestionId


def question_seed(params: SamplingParams, question_id: QuestionId) -> int:
    """63 bits out of the seed and the id."""
    digest = hashlib.sha256(f"{params.seed} {question_id!r}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


class SeededSampling(LogitsProcessor):
    """Turns the logits (B, vocabulary) of a step into ones whose largest is a sample."""

    def __init__(self, params: SamplingParams, question_ids: Sequence[QuestionId]) -> None:
        """``question_ids``: those of the batch's rows."""
        self._temperature = params.temperature
        self._top_p = TopPLogitsWarper(params.top_p) if params.top_p < 1 else None
        self._generators = [
            torch.Generator().manual_seed(question_seed(params, question_id))
            for question_id in question_ids
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logits with noise; tokens outside of ``top_p`` stay out."""
        scores = scores / self._temperature
        if self._top_p is not None:
            scores = self._top_p(input_ids, scores)
        uniform = torch.stack(
            [
                torch.rand(scores.shape[-1], generator=generator, dtype=torch.float64)
                for generator in self._generators
            ]
        )
        noise = -torch.log(-torch.log(uniform))
        return scores + noise.to(scores.device, scores.dtype)
