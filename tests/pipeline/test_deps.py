"""Each stage depends on its script's import closure and, within src/, on nothing else."""

import ast
from pathlib import Path

import pytest
import yaml
from tests.pipeline.closure import collapsed, import_closure

GRAPH = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]


def blocks():
    for name, stage in GRAPH.items():
        yield name, stage.get("do", stage)


@pytest.mark.parametrize(("name", "block"), blocks())
def test_deps_are_the_import_closure(name, block):
    script = next(word for word in block["cmd"].split() if word.startswith("src/"))
    declared = [dep for dep in block["deps"] if dep.startswith("src/")]
    assert declared == collapsed(import_closure(Path(script))), (
        f"{name}: python -m tests.pipeline.closure {script} prints the right lines"
    )


def test_package_files_hold_only_a_docstring():
    """They are executed on import, but are left out of the closures."""
    for path in Path("src").rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr), path
