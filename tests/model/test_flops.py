"""Model FLOPs against what PyTorch counts of a real step, and against a sum by hand."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from nvlm.checkpoint.format.architecture import (
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)
from nvlm.model.flops import attention_flops, peak_flops, step_flops
from nvlm.model.language import Stage
from nvlm.model.nvlm import NVLM, features_by_row

ROWS, LENGTH, TILES, ANSWERS, VISUAL_TOKENS = 2, 12, 4, 5, 4
BOTH = ["vision_projection", "language_model"]


@pytest.fixture
def architecture():
    return Architecture(
        vision=VisionArchitecture(
            hidden_size=24,
            layers=2,
            heads=3,
            ffn_hidden_size=40,
            image_size=24,
            patch_size=6,
            norm_epsilon=1e-6,
        ),
        language=LanguageArchitecture(
            family="qwen2",
            hidden_size=32,
            layers=3,
            heads=4,
            query_groups=2,
            ffn_hidden_size=48,
            norm_epsilon=1e-6,
            rope_theta=1e6,
            vocabulary=101,
            max_positions=64,
        ),
    )


def counted(architecture, trainable):
    """PyTorch's count of a step with attention as plain products, and all S^2 pairs of a row."""
    torch.manual_seed(0)
    model = NVLM(architecture, architecture.language.vocabulary, Stage(first=0, last=3)).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in trainable)
    for part in (model.vision_model, model.language_model):
        part.set_attn_implementation("eager")
    visual_index = torch.full((ROWS, LENGTH), -1)
    visual_index[:, 1:9] = torch.arange(8)  # two tiles a row
    counter = FlopCounterMode(display=False)
    with counter:
        features = model.encode_tiles(torch.randint(256, (TILES, 3, 24, 24), dtype=torch.uint8))
        hidden = model(
            torch.randint(101, (ROWS, LENGTH)),
            position_ids=torch.arange(LENGTH).expand(ROWS, -1),
            visual_index=visual_index,
            features=features_by_row(features, torch.tensor([2, 2])),
        )
        logits = model.language_model.lm_head(hidden.flatten(0, 1)[:ANSWERS])
        functional.cross_entropy(logits, torch.arange(ANSWERS)).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("trainable", [BOTH, ["vision_projection"], ["language_model"]])
def test_a_steps_flops_are_those_that_pytorch_counts(trainable, architecture):
    flops = step_flops(
        architecture,
        trainable=trainable,
        lengths=[LENGTH] * ROWS,
        tiles=TILES,
        answers=ANSWERS,
    )
    unseen = ROWS * LENGTH * (LENGTH - 1) // 2  # pairs that the plain products compute in vain
    masked = 3 * attention_flops(architecture.language, unseen)
    assert flops + masked == counted(architecture, trainable)


def test_a_step_by_hand(architecture):
    """One row of two tokens, one tile, one answer, a single layer of each half."""
    small = Architecture(
        vision=replace(architecture.vision, layers=1),
        language=replace(architecture.language, layers=1),
    )
    weights = 2 * (32 * 32 + 16 * 32 + 16 * 32 + 32 * 32 + 3 * 32 * 48)  # a token
    pairs = 3 * 4 * 32  # three seen pairs
    head = 2 * 32 * 101
    projector = VISUAL_TOKENS * 2 * (96 * 48 + 48 * 32)
    tower = 17 * 2 * (4 * 24 * 24 + 2 * 24 * 40) + 17 * 17 * 4 * 24 + 16 * 2 * (3 * 36) * 24
    step = {"lengths": [2], "tiles": 1, "answers": 1}
    trained = 3 * (2 * weights + pairs + head + projector) + tower
    assert step_flops(small, trainable=BOTH, **step) == trained
    frozen = 2 * (2 * weights + head) + 3 * (pairs + projector) + tower
    assert step_flops(small, trainable=["vision_projection"], **step) == frozen


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_the_peak_is_the_cards(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0)) == peak
    assert peak_flops(torch.device("cpu")) is None
