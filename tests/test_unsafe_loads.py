"""Nothing that is read can become code: no pickle, no evaluation, no loader that trusts its file, under any alias.

tests/test_purity.py looks at calls by name; here every mention counts, called or not, so that no alias gets round it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.source import ALL, files, name, tree

MODULES = {
    "pickle", "cPickle", "_pickle", "pickletools", "marshal", "shelve", "dill", "cloudpickle", "joblib", "copyreg",
    "yaml", "ruamel", "torch", "skops", "tensorflow", "keras", "jsonpickle", "runpy", "imp", "code", "codeop",
    "builtins",
    "xmlrpc", "Pyro5", "multiprocessing", "dbm",
}  # fmt: skip
# the built-in functions, as bare names; `compile` and `exec` are methods of others too (re.compile)
BUILTINS = {"eval", "exec", "compile", "__import__", "__builtins__"}
# attributes and keywords: whatever object they stand at
MEMBERS = {
    "Unpickler", "read_pickle", "to_pickle", "allow_pickle", "unsafe_load", "full_load", "load_module", "__reduce__",
    "__reduce_ex__", "__setstate__", "__getstate__", "find_class", "PyExtensionType", "deserialize", "import_module",
    "exec_module", "FunctionType", "CodeType", "use_pickle", "weights_only",
}  # fmt: skip
EXCEPTIONS = {
    ("tests/test_docs.py", "exec"): "runs the snippets of our own pages",
    ("tests/test_docs.py", "compile"): "the same",
    ("agents/builtin/compressors.py", "__import__"): "the demo's codecs, by names that stand there",
    (
        "agents/sdk/processes.py",
        "multiprocessing",
    ): "a service and its own children, over a pipe that nobody else has",
    ("tests/fuzz/bombs.py", "multiprocessing"): "the test and its own children",
    ("tests/unit/test_learn.py", "exec_module"): "a second copy of our own module",
    (
        "tests/stack/crossing/sitecustomize.py",
        "exec_module",
    ): "lets Python load our own modules, and watches them",
}


def mentions(parsed: ast.AST) -> Iterator[tuple[str, int]]:
    """Everything in a file that could load code, with its line."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            yield from (
                (a.name.split(".")[0], node.lineno) for a in node.names if a.name.split(".")[0] in MODULES
            )
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in MODULES:
                yield (node.module or "").split(".")[0], node.lineno
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in MEMBERS)
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and node.attr in MEMBERS | {"__import__", "__builtins__"}:
            yield node.attr, node.lineno
        elif isinstance(node, ast.keyword) and node.arg in MEMBERS:
            yield node.arg, node.value.lineno
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name in MEMBERS:
            yield node.name, node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "operator.attrgetter"):
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            yield from ((str(text), node.lineno) for text in texts if text in MEMBERS | BUILTINS)


def test_nothing_in_the_repository_can_turn_what_it_reads_into_code() -> None:
    wrong, used = [], set()
    for path in files(*ALL):
        for what, line in mentions(tree(path)):
            if (name(path), what) in EXCEPTIONS:
                used.add((name(path), what))
            else:
                wrong.append(f"{name(path)}:{line} mentions {what}: read Arrow, JSON or TOML instead")
    assert not wrong, "\n".join(wrong)
    assert used == set(EXCEPTIONS), "an exception nobody needs any more"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import pickle", "pickle"), ("import pickle as safe", "pickle"), ("from pickle import loads as l", "pickle"),
        ("import joblib.numpy_pickle", "joblib"), ("from torch import load", "torch"), ("import yaml", "yaml"),
        ("run = eval", "eval"), ("run = eval\nrun('1')", "eval"), ("map(exec, [text])", "exec"),
        ("compile(text, '', 'exec')", "compile"), ("getattr(x, 'eval')", "eval"), ("import builtins", "builtins"),
        ("numpy.load(path, allow_pickle=True)", "allow_pickle"), ("pandas.read_pickle(path)", "read_pickle"),
        ("getattr(pandas, 'read_pickle')(path)", "read_pickle"), ("__builtins__['eval']", "__builtins__"),
        ("import importlib\nimportlib.import_module(x)", "import_module"),
        ("from importlib import import_module as get", "import_module"),
        ("class A:\n    def __reduce__(self): ...", "__reduce__"), ("polars.Expr.deserialize(path)", "deserialize"),
        ("torch_like.load(path, weights_only=False)", "weights_only"), ("def f():\n    import shelve", "shelve"),
    ],
)  # fmt: skip
def test_the_gate_sees_each_way_to_load_code(text: str, found: str) -> None:
    assert found in {what for what, _ in mentions(ast.parse(text))}


@pytest.mark.parametrize(
    "text",
    ["re.compile(text)", "connection.exec(text)", "json.loads(text)", "pl.read_parquet(path)", "import json"],
)
def test_the_gate_lets_pass_what_only_reads(text: str) -> None:
    assert not list(mentions(ast.parse(text)))
