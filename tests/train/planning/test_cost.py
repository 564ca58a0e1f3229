"""Times are made of counted work: each part by hand, and what changes it."""

from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from nvlm.checkpoint.format.published import PUBLISHED
from nvlm.params import composed, parse_params
from nvlm.train.params import TrainParams
from nvlm.train.planning.cost import CARDS, Rates, step_time
from nvlm.train.planning.plan import plan_run

FULL = OmegaConf.create(composed(["scale=full"])).train
CARD, RATES = CARDS["h100"], Rates()


def time_of(section, rates=RATES, **changes):
    params = replace(parse_params(FULL[section], TrainParams, section), **changes)
    return step_time(params, PUBLISHED[section[-3:]], CARD, rates, 7)


def test_a_72b_step_by_hand():
    """72.7e9 parameters less embedding and head, six FLOPs each and token, over 128 cards."""
    exact = replace(RATES, products=1, attention=1)
    time = time_of("sft_72b", exact)
    layers = 80 * (4 * 8192 * (8192 + 1024) + 6 * 8192 * 29568)
    tokens = 128 * 3200
    pairs = 80 * 4 * 8192 * 128 * 3200 * 3201 // 2
    expected = 3 * (layers * tokens + pairs) / (128 * 989e12)
    assert time.products == pytest.approx(expected, rel=0.03)  # an end comes on top
    assert time.tensor_parallel == pytest.approx(
        2 * 20 * 32 * 4 * 2 * 8192 * 3200 * 7 / 8 / 360e9, rel=1e-6
    )
    assert time.utilization(CARD, 128) < 1


def test_what_a_policy_saves():
    base = time_of("sft_72b")
    assert time_of("sft_72b", recompute_every=1).seconds > base.seconds
    assert (
        time_of("sft_72b", recompute_every=2).seconds
        < time_of("sft_72b", recompute_every=1).seconds
    )
    assert time_of("sft_72b", sequence_parallel=False).elementwise > 3 * base.elementwise
    gathered = time_of("sft_34b", keep_gathered=False).data_parallel
    assert gathered > 4 * time_of("sft_34b").data_parallel
    assert time_of("pretrain_72b", micro_batch=1).dispatch > time_of("pretrain_72b").dispatch


def test_the_disk_that_is_asked_for_holds_every_snapshot():
    """Weights and checkpoints, and as many snapshots of the 72B as lie there at once."""
    params = parse_params(FULL.sft_72b, TrainParams, "sft_72b")
    snapshots = (params.snapshots_kept + 1) * plan_run(params, PUBLISHED["72b"], 152576).snapshot
    asked = OmegaConf.create(composed(["scale=full"])).environment.disk_gib * 2**30
    assert asked > 1.4e12 + snapshots


def test_the_recipes_grid_reaches_what_it_aims_at():
    """35 % at TP=8 x PP=4, on the rates that are assumed; `plan` prints them."""
    assert time_of("sft_72b").utilization(CARD, 128) > 0.35
