"""What a stage script is made of: itself and the modules of src/nvlm that it imports.

Run with: python -m tests.pipeline.closure src/train.py (prints the lines for dvc.yaml)
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

SOURCE = Path("src")


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
    for line in import_closure(Path(sys.argv[1])):
        print(f"      - {line}")
