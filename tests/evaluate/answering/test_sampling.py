"""Sampling: the distribution of the softmax, whatever the batch."""

import pytest
import torch

from nvlm.evaluate.answering.sampling import SeededSampling, question_seed
from nvlm.evaluate.params import SamplingParams

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])


def draw(params: SamplingParams, ids: list[int], steps: int) -> torch.Tensor:
    """Token of each step (B, steps)."""
    sampling = SeededSampling(params, ids)
    scores = LOGITS.expand(len(ids), -1)
    unused = torch.zeros(len(ids), 1, dtype=torch.long)
    return torch.stack([sampling(unused, scores).argmax(-1) for _ in range(steps)], dim=1)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.8)])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float, top_p: float):
    params = SamplingParams(temperature=temperature, top_p=top_p, seed=1)
    drawn = draw(params, [1, 2], 4000).flatten()
    expected = torch.softmax(LOGITS / temperature, -1)
    if top_p < 1:  # 0.644 alone is too little, the first two are enough
        expected = torch.cat([expected[:2] / expected[:2].sum(), torch.zeros(3)])
    counted = torch.bincount(drawn, minlength=5) / len(drawn)
    assert torch.allclose(counted, expected, atol=0.02)
    assert counted[4] == 0


def test_a_row_draws_the_same_in_every_batch_and_another_with_another_seed():
    params = SamplingParams(temperature=1.0, top_p=1.0, seed=1)
    together = draw(params, [1, 2, 3], 50)
    assert torch.equal(draw(params, [3, 1], 50), together[[2, 0]])
    assert not torch.equal(together[0], together[1])
    other = SamplingParams(temperature=1.0, top_p=1.0, seed=2)
    assert not torch.equal(draw(other, [1], 50), together[:1])
    assert question_seed(params, 1) != question_seed(params, "1")


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 0.0), (1.0, 1.1)])
def test_values_are_checked(temperature: float, top_p: float):
    with pytest.raises(ValueError, match=r"temperature: above 0|top_p: above 0"):
        SamplingParams(temperature=temperature, top_p=top_p, seed=1)
