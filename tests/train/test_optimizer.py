"""The learning-rate schedule by hand; what decays and what doesn't."""

from dataclasses import replace

import pytest
from tests.parallel.grids import train_params
from torch import nn

from nvlm.errors import UserError
from nvlm.parallel.grid import GridParams
from nvlm.params import parse_params
from nvlm.train.optimizer import build_optimizer, learning_rate
from nvlm.train.params import TrainParams

PARAMS = replace(
    train_params(GridParams(tensor=1), ["language_model"], 20),
    lr=1.0,
    min_lr=0.2,
    warmup_steps=4,
    steps=20,
)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(1, 0.25), (4, 1.0), (8, 0.2 + 0.8 * 0.8535534), (12, 0.6), (20, 0.2)],
)
def test_warmup_is_linear_and_the_cosine_ends_at_the_minimum(step, rate):
    assert learning_rate(step, PARAMS) == pytest.approx(rate)


def test_matrices_decay_and_biases_and_norms_do_not():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    model[2].requires_grad_(False)
    groups = build_optimizer(model, PARAMS).param_groups
    decays = {
        id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]
    }
    assert decays == {
        id(model[0].weight): 0.1,
        id(model[0].bias): 0.0,
        id(model[1].weight): 0.0,
        id(model[1].bias): 0.0,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainable": ["vision_model"]}, "trainable: .*should name some of"),
        ({"global_batch": 9}, "global_batch: 9 should be a multiple of micro_batch"),
        (
            {"grid": {"tensor": 1, "pipeline": 2}, "trainable": ["vision_projection"]},
            "grid.pipeline: 2 should be 1 where trainable leaves out the language model",
        ),
        ({"min_lr": 2.0}, "min_lr: 2.0 should lie between 0 and lr"),
        ({"warmup_steps": 20}, "warmup_steps: 20 should be less than steps"),
        ({"betas": [0.9]}, "betas: .* two numbers"),
        ({"dtype": "int8"}, "dtype: 'int8' should be one of"),
        ({"grid": {"tensor": 0}}, r"grid\.tensor: 0 should be 1 or more"),
    ],
)
def test_wrong_values_are_named(change, message):
    import dataclasses

    values = dataclasses.asdict(PARAMS) | change
    with pytest.raises(UserError, match=message):
        parse_params(values, TrainParams, "train.sft_72b")
