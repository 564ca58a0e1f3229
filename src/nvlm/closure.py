"""What a stage's script is made of: itself and the modules of src/nvlm that it imports.

DVC compares files; here is said what of the code can change an output. Comments, docstrings and
blank lines can't, nor can the modules of ``NO_OUTPUT``: at full scale a stage that runs again for
one of those costs weeks.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Modules and packages that decide where a stage runs, whether it starts, and what is told of it.
NO_OUTPUT = (
    "nvlm.errors",
    "nvlm.evaluate.online",
    "nvlm.launch",
    "nvlm.train.checks",
    "nvlm.train.telemetry",
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def listing(script: Path) -> str:
    """A line ``path digest`` for ``script`` and each module that it imports, sorted."""
    return "".join(f"{path.as_posix()} {digest(path)}\n" for path in import_closure(script))


def import_closure(script: Path) -> list[Path]:
    """Sorted paths of ``script`` and of all that it imports from its own directory, however deep.

    Imports inside functions count; those for type checkers alone and those of ``NO_OUTPUT`` don't.
    Packages' ``__init__`` hold nothing but a docstring (a test sees to that): they are left out.
    """
    found: set[Path] = set()
    queue = [script]
    while queue:
        path = queue.pop()
        if path not in found:
            found.add(path)
            queue.extend(_imports(path, script.parent))
    return sorted(found)


@cache
def digest(path: Path) -> str:
    """Sixteen hex digits of what is executed of a source file."""
    return hashlib.sha256(_executable(path.read_text()).encode()).hexdigest()[:16]


def _executable(source: str) -> str:
    """``source`` without comments, docstrings, and blank lines outside of strings.

    The text, not a syntax tree: that of one version of Python differs from another's.
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    within_string: set[int] = set()  # numbers of lines
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr | ast.Constant) and node.end_lineno is not None:
            within_string.update(range(node.lineno, node.end_lineno))
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            assert text.end_lineno is not None
            lines[text.lineno - 1 : text.end_lineno] = [""] * (text.end_lineno - text.lineno + 1)
            documented.update(range(text.lineno, text.end_lineno + 1))
    kept = within_string - documented
    return "\n".join(
        line for number, line in enumerate(lines, start=1) if line.strip() or number in kept
    )


@cache
def _imports(path: Path, source: Path) -> list[Path]:
    """The files below ``source`` that ``path`` imports."""
    files = []
    for node in _executed(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if not any(f"{name}.".startswith(f"{other}.") for other in NO_OUTPUT):
                file = source.joinpath(*name.split(".")).with_suffix(".py")
                if file.is_file():
                    files.append(file)
    return files


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below ``node`` but those under ``if TYPE_CHECKING:``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _executed(child)
