"""The repository's own text, for the tests that read it: files, their trees, what they import and call."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("streams", "codecs", "agents", "analytics", "infra")
ALL = (*PRODUCT, "tests", "benchmarks", "examples", "src")


def files(*folders: str) -> list[Path]:
    """Python files of folders, the linked ones once."""
    found = []
    for folder in folders:
        base = ROOT / folder
        paths = base.glob("aos/*.py") if folder == "src" else base.rglob("*.py")
        found += [path for path in paths if "__pycache__" not in path.parts]
    return sorted(found)


@cache
def tree(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(), str(path))


def name(path: Path) -> str:
    """The path from the repository's root."""
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules a file imports, anywhere in it, with the line; a relative one begins with a dot."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module in ("aos", "aos.streams"):
                yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


def calls(path: Path) -> Iterator[ast.Call]:
    """Every call in a file."""
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def called(node: ast.Call) -> str:
    """The last two names of what is called: ``datetime.now``."""
    return ".".join(ast.unparse(node.func).split(".")[-2:])


@cache
def texts(path: Path) -> str:
    """All string constants of a file but its docstrings."""
    silent = {
        id(node.body[0].value)
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and isinstance(node.body[0] if node.body else None, ast.Expr)
        and isinstance(node.body[0], ast.Expr)
    }
    constants = (node for node in ast.walk(tree(path)) if isinstance(node, ast.Constant))
    return "\n".join(
        node.value for node in constants if isinstance(node.value, str) and id(node) not in silent
    )


def tracked(*folders: str) -> set[str]:
    """Files of folders that git knows and that are there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return {path for path in listed.split("\0") if path and (ROOT / path).exists()}
