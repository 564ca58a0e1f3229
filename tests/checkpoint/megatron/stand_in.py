"""Changing a Megatron checkpoint, and seeing that it is refused."""

import pytest
import torch

from nvlm.checkpoint.megatron.importing import ImportOptions, import_megatron
from nvlm.errors import UserError

FILE = "iter_0000001/mp_rank_01/model_optim_rng.pt"


def edit(directory, change, file=FILE):
    path = directory / file
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


def refused(directory, complaint, **options):
    before = set(directory.parent.iterdir())
    with pytest.raises(UserError, match=complaint):
        import_megatron(directory, directory.parent / "out", ImportOptions(**options))
    assert set(directory.parent.iterdir()) == before
