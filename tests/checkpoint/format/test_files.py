"""Files are safetensors, the same bytes each time, and never written in place."""

import errno
import hashlib
import os

import pytest
import torch
from safetensors.torch import load_file

from nvlm.checkpoint.format.files import (
    link_file,
    new_checkpoint,
    read_part,
    stays_inside,
    write_part,
)
from nvlm.errors import UserError


def tensors() -> dict[str, torch.Tensor]:
    return {
        "b.weight": torch.arange(12.0).reshape(3, 4).T,  # not contiguous
        "a.bias": torch.tensor([1.5, -2.0]),
        "c.scalar": torch.tensor(7.0),
        "d.empty": torch.zeros(0, 3),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_own_reader_reads_what_was_written(tmp_path, dtype):
    expected = {name: tensor.to(dtype) for name, tensor in tensors().items()}
    name, entry = write_part(tmp_path, 3, "language_model.head", expected)
    assert name == "tp03/language_model.head.safetensors"
    data = (tmp_path / name).read_bytes()
    assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    for found in (load_file(tmp_path / name), read_part(tmp_path, 3, "language_model.head")):
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert found[key].dtype == dtype
            assert torch.equal(found[key], tensor)


def test_order_and_memory_layout_do_not_change_the_bytes(tmp_path):
    _, first = write_part(tmp_path, 0, "a", tensors())
    shuffled = {name: tensor.contiguous() for name, tensor in reversed(tensors().items())}
    _, second = write_part(tmp_path, 0, "b", shuffled)
    assert first == second


def test_a_file_is_never_overwritten(tmp_path):
    write_part(tmp_path, 0, "a", tensors())
    with pytest.raises(FileExistsError):
        write_part(tmp_path, 0, "a", tensors())


def test_changing_a_tensor_that_was_read_leaves_the_file_alone(tmp_path):
    name, entry = write_part(tmp_path, 0, "a", tensors())
    read_part(tmp_path, 0, "a")["b.weight"].zero_()
    assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == entry.sha256


def test_link_is_the_same_file_even_behind_a_symbolic_link(tmp_path):
    name, _ = write_part(tmp_path / "cache", 0, "a", tensors())
    link_file(tmp_path / "cache", tmp_path / "first", name)
    assert (tmp_path / "first" / name).samefile(tmp_path / "cache" / name)
    (tmp_path / "linked" / "tp00").mkdir(parents=True)
    (tmp_path / "linked" / name).symlink_to(tmp_path / "cache" / name)
    link_file(tmp_path / "linked", tmp_path / "second", name)
    assert not (tmp_path / "second" / name).is_symlink()
    assert (tmp_path / "second" / name).samefile(tmp_path / "cache" / name)


def test_another_file_system_gets_a_copy(tmp_path, monkeypatch):
    name, _ = write_part(tmp_path / "here", 0, "a", tensors())

    def refuse(source, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))

    monkeypatch.setattr(os, "link", refuse)
    link_file(tmp_path / "here", tmp_path / "there", name)
    assert (tmp_path / "there" / name).stat().st_nlink == 1
    assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(UserError, match="out was not written"),
        new_checkpoint(tmp_path / "out") as partial,
    ):
        write_part(partial, 0, "a", tensors())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_checkpoint_that_was_there(tmp_path):
    with new_checkpoint(tmp_path / "out") as partial:
        write_part(partial, 0, "a", tensors())
    with pytest.raises(RuntimeError), new_checkpoint(tmp_path / "out"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert read_part(tmp_path / "out", 0, "a").keys() == tensors().keys()


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("tp00/a.safetensors", True),
        ("a..b", True),
        ("../a", False),
        ("tp00/../../a", False),
        ("/etc/passwd", False),
        ("..\\a", False),
        ("a\0", False),
        (".", False),
        ("", False),
    ],
)
def test_names_stay_inside(name, inside):
    assert stays_inside(name) == inside
