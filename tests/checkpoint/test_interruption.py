"""A conversion that is killed, or that finds the disk full, leaves a whole checkpoint or none."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests.checkpoint.build import build_combined
from tests.checkpoint.models import save_language

from nvlm.checkpoint.format.manifest import check_digests, read_manifest
from nvlm.checkpoint.megatron.exporting import export_megatron
from nvlm.errors import UserError

# Forks a process that converts again and again, and kills it: starting Python anew for every kill
# would take longer than converting. Waits for a line before the next kill.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from nvlm.checkpoint.huggingface.convert import convert_language
source, out, moments = Path(sys.argv[1]), Path(sys.argv[2]), random.Random(1)
for _ in sys.stdin:
    child = os.fork()
    if not child:
        while True:
            convert_language(source, out, tensor=2, vocabulary_multiple=8)
    time.sleep(moments.uniform(0, 0.8))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed", flush=True)
"""
KILLS = 20


def verified(directory: Path) -> bool:
    """Whether ``verify`` accepts it."""
    try:
        check_digests(directory, read_manifest(directory))
    except UserError:
        return False
    return True


def test_kills_at_random_moments(tmp_path):
    save_language(tmp_path / "hf", "qwen2", layers=24)
    out, hidden = tmp_path / "out", tmp_path / ".out.partial"
    whole = broken = 0
    with subprocess.Popen(
        [sys.executable, "-c", KILLER, str(tmp_path / "hf"), str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(KILLS):
            process.stdin.write("next\n")
            process.stdin.flush()
            assert process.stdout.readline() == "killed\n"
            for directory in filter(Path.exists, (out, hidden)):
                if verified(directory):
                    whole += 1
                    assert_whole(directory)
                else:
                    broken += 1
                    assert directory == hidden, "a published checkpoint is not whole"
    assert broken >= 3, "too few kills fell into a conversion"
    assert whole >= 3, "too few conversions ended"


def assert_whole(directory: Path) -> None:
    files = read_manifest(directory).files
    assert len(files) == 2 * (24 + 2) + 3
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*.*")}
    assert found == {*files, "checkpoint.json"}


@pytest.mark.parametrize(
    "words",
    [
        "convert-language hf_language out --tensor 2",
        "convert-vision hf_vision out --tensor 1",
        "reshard combined out --tensor 1",
        "export-megatron combined out",
        "import-megatron megatron out",
        "export-hf combined out",
    ],
)
def test_disk_that_is_full(tmp_path, words):
    """A limit on the size of files stands for the disk: the kernel refuses in the same place."""
    build_combined(tmp_path)
    if "megatron out" in words:
        export_megatron(tmp_path / "combined", tmp_path / "megatron")
    before = sorted(tmp_path.iterdir())
    result = subprocess.run(
        [sys.executable, "-m", "nvlm.checkpoint", *words.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert result.returncode == 2
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: out was not written (File too large): free some space")
    assert sorted(tmp_path.iterdir()) == before
