"""What a change of the code reruns: a table of edited files, and the rules that make it so."""

import ast
from pathlib import Path

import networkx
import pytest
import yaml
from dvc.repo import Repo
from tests.pipeline.affected import (
    BRANCHES,
    SETS,
    TASKS,
    after_combining,
    after_converting,
    after_pretraining,
    after_releasing,
    after_sft,
    inspected,
    scored,
)

from nvlm.closure import digest, import_closure, listing

GRAPH = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
SCRIPTS = sorted(Path("src").glob("*.py"))
CODE = Path("stages/code")
REMOTE_CODE = "src/nvlm/checkpoint/huggingface/remote_code"  # exports hold it as it is
PREPARED = [f"{group}@{name}" for group in ("pretrain", "sft") for name in SETS[group]]


def blocks():
    for name, stage in GRAPH.items():
        yield name, stage.get("do", stage)


@pytest.mark.parametrize(("name", "block"), blocks())
def test_of_the_code_a_stage_depends_on_its_scripts_list_alone(name, block):
    script = next(word for word in block["cmd"].split() if word.startswith("src/"))
    data, listed = block["deps"][:-1], block["deps"][-1]
    assert listed == ("src" if name == "code" else f"{CODE}/{Path(script).stem}.txt")
    assert not [dep for dep in data if dep.startswith("src") and dep != REMOTE_CODE]


def test_the_committed_lists_are_those_of_the_sources():
    made = {f"{script.stem}.txt": listing(script) for script in SCRIPTS}
    assert made == {path.name: path.read_text() for path in CODE.iterdir()}, "dvc repro code"


def test_package_files_hold_only_a_docstring():
    """They are executed on import, but are left out of the lists."""
    for path in Path("src").rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr), path


def trained(*branches):
    return set().union(*(after_pretraining(branch) for branch in branches))


def answered(**chosen):
    return scored(*BRANCHES, **chosen)


EVERYTHING_TRAINED = trained(*BRANCHES)
EXPORTED_HF = {"verify_72b", "export_hf_34b", "export_hf_72b"}
IMPORTED = {"import_released_72b"} | scored("72b", models=["released"])
# A file, and the stages that run again once a line of it is another.
EDITED = [
    ("src/nvlm/errors.py", set()),
    ("src/nvlm/launch/local.py", set()),
    ("src/nvlm/launch/stage.py", set()),
    ("src/nvlm/launch/slurm/script.py", set()),
    ("src/nvlm/train/checks.py", set()),
    ("src/nvlm/train/telemetry/logs.py", set()),
    ("src/nvlm/train/telemetry/measurements.py", set()),
    ("src/nvlm/train/planning/memory.py", set()),
    ("src/nvlm/model/flops.py", set()),
    ("src/nvlm/evaluate/online.py", set()),
    ("src/nvlm/evaluate/reporting/compare.py", set()),
    ("src/nvlm/checkpoint/megatron/importing.py", IMPORTED),
    ("src/nvlm/evaluate/reporting/results.py", {"report"}),
    (
        "src/nvlm/checkpoint/megatron/exporting.py",
        {"export_megatron_34b", "export_megatron_72b"} | IMPORTED,
    ),
    ("src/nvlm/checkpoint/huggingface/exporting.py", EXPORTED_HF | after_releasing()),
    ("src/nvlm/evaluate/reporting/gallery.py", answered(verbs=["score"])),
    ("src/nvlm/evaluate/metrics/vqa.py", answered(verbs=["score"])),
    ("src/nvlm/evaluate/answering/generation.py", answered()),
    (
        "src/nvlm/data/benchmarks/official.py",
        answered() | {"find_overlap"} | {f"prepare_eval@{task}" for task in TASKS},
    ),
    ("src/nvlm/train/optimizer.py", EVERYTHING_TRAINED),
    (
        "src/nvlm/data/loading/encoder.py",
        EVERYTHING_TRAINED | inspected("pretrain", *BRANCHES) | inspected("sft", *BRANCHES),
    ),
    (
        "src/nvlm/data/shards/prepare.py",
        EVERYTHING_TRAINED
        | inspected("pretrain", *BRANCHES)
        | inspected("sft", *BRANCHES)
        | {f"prepare_{name}" for name in PREPARED}
        | {"find_overlap"},
    ),
    (
        "src/nvlm/checkpoint/relayout/repartition.py",
        {"verify_72b", "split_pp_72b"} | after_sft("72b"),
    ),
    ("src/combine.py", after_combining("34b") | after_combining("72b")),
    ("src/convert_vision.py", after_converting("vision")),
]


@pytest.fixture(scope="module")
def dependents():
    """The stages that run again after a given one, as DVC's own graph has them."""
    with Repo() as repo:
        graph = repo.index.graph.copy()
        names = {stage.addressing: stage for stage in graph}
        # Who reads what is left out does not run again: where nothing is, that stays as it is.
        overlap = names["find_overlap"]
        graph.remove_edges_from([(reader, overlap) for reader in graph.predecessors(overlap)])
        readers: dict[str, set[str]] = {name: set() for name in names}
        for name, stage in names.items():
            readers[name] = {name} | {each.addressing for each in networkx.ancestors(graph, stage)}
        reads = {name: {dep.def_path for dep in stage.deps} for name, stage in names.items()}

    def of(script):
        listed = f"{CODE}/{script.stem}.txt"
        return set().union(*(readers[name] for name, deps in reads.items() if listed in deps))

    return of


@pytest.mark.parametrize(("edited", "expected"), EDITED, ids=[row[0] for row in EDITED])
def test_an_edit_reruns_what_it_can_change_and_nothing_else(edited, expected, dependents):
    assert Path(edited).is_file()
    changed = [script for script in SCRIPTS if Path(edited) in import_closure(script)]
    known = {"", "sft"}.union(*SETS.values())  # two of the tasks stand for all
    rerun = set().union(*map(dependents, changed))
    assert {stage for stage in rerun if stage.partition("@")[2] in known} == expected


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("def f(x):\n    return x + 1\n", True),
        ('"""Module."""\n\n\ndef f(x):\n    """Says more."""\n\n    return x + 1  # why\n', True),
        ("def f(x):\n    # why\n    return x + 1\n", True),
        ("def f(x):\n    return x + 2\n", False),
        ("def f(x):\n    return x + 1\n\n\nf(2)\n", False),
    ],
)
def test_comments_docstrings_and_blank_lines_are_not_code(text, same, tmp_path):
    (tmp_path / "one.py").write_text('def f(x):\n    """Says."""\n    return x + 1\n')
    (tmp_path / "other.py").write_text(text)
    assert (digest(tmp_path / "one.py") == digest(tmp_path / "other.py")) is same


@pytest.mark.parametrize("other", ['x = """a\nb"""', 'x = """a\n\n\nb"""', 'x = """a\n # c\nb"""'])
def test_blank_lines_and_hashes_within_a_text_are_code(other, tmp_path):
    (tmp_path / "one.py").write_text('x = """a\n\nb"""')
    (tmp_path / "other.py").write_text(other)
    assert digest(tmp_path / "one.py") != digest(tmp_path / "other.py")


def test_imports_that_count(tmp_path):
    (tmp_path / "nvlm/launch").mkdir(parents=True)
    for name in ("a", "b", "c", "launch/d", "e"):
        (tmp_path / f"nvlm/{name}.py").write_text("")
    (tmp_path / "script.py").write_text(
        "from typing import TYPE_CHECKING\nimport nvlm.a\nfrom nvlm.launch import d\n"
        "if TYPE_CHECKING:\n    from nvlm import b\ndef f():\n    from nvlm.c import x\n"
    )
    (tmp_path / "nvlm/c.py").write_text("from nvlm import e\n")
    found = [path.stem for path in import_closure(tmp_path / "script.py")]
    assert found == ["a", "c", "e", "script"]
