"""params.yaml is what conf/ composes to, as `dvc exp run` would write it."""

from pathlib import Path

import pytest
from dvc.utils.hydra import compose_and_dump

from nvlm.errors import UserError
from nvlm.params import composed


def test_params_are_composed_from_conf():
    assert Path("params.yaml").read_text() == composed([]), "run python src/compose_params.py"


@pytest.mark.parametrize(
    "overrides", [[], ["scale=full"], ["scale=node"], ["scale=card"], ["train.sft_72b.lr=3e-5"]]
)
def test_same_bytes_as_dvc_exp_run(overrides, tmp_path):
    out = tmp_path / "params.yaml"
    compose_and_dump(out, str(Path("conf").resolve()), None, "config", "", overrides)
    assert out.read_text() == composed(overrides)


@pytest.mark.parametrize("override", ["train.sft_72b.learning_rate=1", "scale=huge"])
def test_an_unknown_key_or_group_is_one_sentence(override):
    with pytest.raises(UserError, match=override.split("=")[0].split(".")[-1]):
        composed([override])
