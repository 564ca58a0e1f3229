"""The GPU benchmark runs on a CPU at toy width, and says no more than it measured."""

import math
import re
import subprocess
import sys
from collections.abc import Mapping

import pytest

COMMAND = [sys.executable, "benchmarks/gpu.py"]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def printed() -> str:
    result = run("--toy", "--rows", "2", "--steps", "1", "--rounds", "1")
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def table(printed) -> Mapping[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:1] == "|"]
    assert lines[0] == ["engine", "plain"]
    return {label: values for label, *values in lines[2:]}


def number(text: str) -> float:
    return float(text.replace(",", "").rstrip("%"))


def test_both_ways_are_measured_on_the_same_samples(table, printed):
    for label in ("tokens/s", "TFLOP/s"):
        assert all(0 < number(value) < math.inf for value in table[label])
    for value in table["time outside matrix products"]:
        assert 0 < number(value) < 100
    ratio = float(re.findall(r"engine over plain: (\S+)", printed)[0])
    for label, tolerance in {"tokens/s": 0.02, "TFLOP/s": 0.1}.items():
        engine, plain = (number(value) for value in table[label])
        assert engine / plain == pytest.approx(ratio, rel=tolerance)


def test_flops_and_tokens_a_second_are_of_one_step(table):
    """A row of 96 tokens in samples of 64 and 32, 11 tiles of 17 tower tokens, 16 labels; by hand,
    a multiplication with an addition being two."""
    decoder = 2 * 96 * 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    pairs = 2 * (64 * 65 // 2 + 32 * 33 // 2) * 4 * 64
    head = ((64 - 28) // 4 + (32 - 16) // 4) * 2 * 64 * 101
    projector = 11 * 4 * 2 * (96 * 128 + 128 * 64)
    tower = 11 * (2 * (17 * 2 * (4 * 24 * 24 + 2 * 24 * 48) + 17 * 17 * 4 * 24) + 16 * 2 * 108 * 24)
    flops = 3 * (decoder + pairs + head + projector) + tower
    for tokens, rate in zip(table["tokens/s"], table["TFLOP/s"], strict=True):
        assert number(rate) * 1e12 / number(tokens) == pytest.approx(flops / 96, rel=0.01)


def test_nothing_is_claimed_of_a_card(table, printed):
    assert printed.startswith("CPU, ")
    assert "toy width" in printed
    assert table["model FLOPs utilization"] == table["peak memory, GiB"] == ["-", "-"]


def test_a_count_of_none_is_refused_in_a_sentence():
    result = run("--layers", "0")
    assert result.returncode == 2
    assert result.stderr.strip().endswith("error: --layers should be 1 or more")


def test_a_tensor_rank_is_run_alone_with_each_policy_off():
    result = run("--toy", "--rows", "2", "--steps", "1", "--rounds", "1", "--tensor", "2")
    assert result.returncode == 0, result.stderr
    assert "one of 2 tensor ranks" in result.stdout
    ratios = re.findall(r"engine over (.*): (\S+)", result.stdout)
    assert len(ratios) == 5 and all(float(ratio) > 0 for _, ratio in ratios)
