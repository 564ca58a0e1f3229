"""The loss against transformers' own, and the weights of turns by hand."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from nvlm.model.tokens import IGNORED
from nvlm.parallel.loss import answer_loss, turn_weights

X = IGNORED


def test_each_token_counts_the_same_or_each_turn_by_the_root_of_its_length():
    labels = torch.tensor([[X, 5, 6, 7, 8, X, 9, X], [3, X, X, 4, 4, 4, 4, 4]])
    assert turn_weights(labels, "token").tolist() == [
        [0, 1, 1, 1, 1, 0, 1, 0],
        [1, 0, 0, 1, 1, 1, 1, 1],
    ]
    fifth = 5**-0.5
    expected = [[0, 0.5, 0.5, 0.5, 0.5, 0, 1, 0], [1, 0, 0, *[fifth] * 5]]
    torch.testing.assert_close(turn_weights(labels, "square_root"), torch.tensor(expected))


def test_turns_end_with_their_row():
    labels = torch.tensor([[X, 1], [2, X]])
    assert turn_weights(labels, "square_root").tolist() == [[0, 1], [1, 0]]


def test_without_an_answer_nothing_counts():
    labels = torch.full((2, 3), X)
    for weighting in ("token", "square_root"):
        assert not turn_weights(labels, weighting).any()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    place = f"file://{tmp_path_factory.mktemp('store') / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("answered", [0.0, 0.3, 1.0])
def test_the_loss_is_pytorchs_over_the_whole_row_without_padded_vocabulary(answered, mesh):
    torch.manual_seed(0)
    head = nn.Linear(6, 11, bias=False)
    hidden = torch.randn(2, 7, 6, requires_grad=True)
    labels = torch.randint(9, (2, 7)).where(torch.rand(2, 7) < answered, X)
    expected = nn.functional.cross_entropy(
        head(hidden).flatten(0, 1)[:, :9], labels.flatten(), ignore_index=X, reduction="sum"
    )
    loss = answer_loss(head, hidden, labels, vocabulary=9, mesh=mesh, turn_weighting="token")
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected, hidden)
    torch.testing.assert_close(gradient, wanted)
