"""The embedding whose rows are split over tensor-parallel ranks."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode

from nvlm.errors import UserError
from nvlm.launch.local import launch
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.parallel.sequence import SequenceSplit
from nvlm.parallel.tensor import VocabularyParallel

ROWS, WIDTH, RANKS = 12, 4, 2


class Shapes(TorchDispatchMode):
    """Collects the shapes of what operations return on this rank."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not isinstance(result, DTensor):
            self.seen.add(tuple(result.shape))
        return result


def check_embedding():
    torch.manual_seed(0)
    whole = nn.Embedding(ROWS, WIDTH)
    split = nn.Embedding(ROWS, WIDTH)
    split.load_state_dict(whole.state_dict())
    ids = torch.tensor([[0, 5, 6, 11], [5, 5, 7, 0]])
    weights = torch.randn(*ids.shape, WIDTH)
    expected = whole(ids)
    (expected * weights).sum().backward()
    assert whole.weight.grad is not None
    with parallel_mesh(GridParams(tensor=RANKS)) as mesh:
        parallelize_module(split, mesh.tensor, VocabularyParallel())
        embedded = SequenceSplit(mesh.tensor).summed(split(ids, part=True))
        with Shapes() as shapes:
            (embedded * weights).sum().backward()
        mine = slice(mesh.tensor_rank * ROWS // RANKS, (mesh.tensor_rank + 1) * ROWS // RANKS)
        if not (torch.equal(embedded, expected) and torch.equal(split(ids), expected)):
            raise UserError("other embeddings")
        if not torch.equal(split.weight.grad.to_local(), whole.weight.grad[mine]):
            raise UserError("another gradient")
        if (ROWS, WIDTH) in shapes.seen:
            raise UserError("the gradient of the whole vocabulary")


def test_a_rank_embeds_and_learns_its_own_rows_alone():
    launch(check_embedding, RANKS)
