"""The first losses of both branches are those that were committed."""

import json

import pytest
from tests.train.golden import GOLDEN, losses


@pytest.mark.parametrize("branch", ["34b", "72b"])
def test_losses_at_smoke_scale_are_the_golden_ones(branch, datasets, tmp_path):
    golden = json.loads(GOLDEN.read_text())[branch]
    found = losses(branch, datasets, tmp_path)
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in golden], abs=2e-4)
    assert [norm for _, norm in found] == pytest.approx([norm for _, norm in golden], rel=2e-3)
    assert found[-1][0] < found[0][0]
