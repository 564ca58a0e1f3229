"""What a stage script is made of: itself and the modules of src/nvlm that it imports.

A package that is imported whole is named by its directory.

Run with: python -m tests.pipeline.closure src/train.py (prints the lines for dvc.yaml)
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

SOURCE = Path("src")
LIBRARY = SOURCE / "nvlm"
# Imported by a training run that scores its model on the way. It changes no output, so that no
# stage depends on it: a change of a metric reruns scoring, never training.
OBSERVERS = ("nvlm.evaluate.online",)


def import_closure(script: Path) -> list[str]:
    """Sorted paths of ``script`` and of everything in src/ that it imports, however deep.

    Imports inside functions count; those for type checkers alone don't. Packages' ``__init__``
    hold nothing but a docstring (a test sees to that), so they are left out.
    """
    found: set[Path] = set()
    queue = [script]
    while queue:
        path = queue.pop()
        if path in found:
            continue
        found.add(path)
        queue.extend(_imports(path))
    return sorted(str(path) for path in found)


def collapsed(closure: list[str]) -> list[str]:
    """``closure`` with each directory in place of its files that is in it whole.

    DVC reads and writes all of dvc.lock at every stage: fewer lines are faster.
    """
    files = set(closure)
    whole = {
        directory
        for directory in {parent for file in closure for parent in Path(file).parents}
        if directory.is_relative_to(LIBRARY)
        and directory != LIBRARY
        and _modules(directory) <= files
    }
    return sorted({_topmost(Path(file), whole) for file in closure})


def _modules(directory: Path) -> set[str]:
    return {str(path) for path in directory.rglob("*.py") if path.name != "__init__.py"}


def _topmost(file: Path, whole: set[Path]) -> str:
    return str(next((parent for parent in reversed(file.parents) if parent in whole), file))


def _imports(path: Path) -> list[Path]:
    files = []
    for node in _executed(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name in OBSERVERS:
                continue
            file = SOURCE.joinpath(*name.split(".")).with_suffix(".py")
            if file.is_file():
                files.append(file)
    return files


def _executed(node: ast.AST) -> list[ast.AST]:
    """All nodes below ``node`` but those under ``if TYPE_CHECKING:``."""
    nodes = [node]
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        nodes.extend(_executed(child))
    return nodes


if __name__ == "__main__":
    for line in collapsed(import_closure(Path(sys.argv[1]))):
        print(f"      - {line}")
