"""The style of this repository, executable: one-way imports, a pure core, small parts, nothing forgotten.

Each message says where it is and what to do. An exception stands here by name, with its reason.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from aos.codecs.errors import CODES

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("streams", "codecs", "agents", "analytics", "infra")
ALL = (*PRODUCT, "tests", "benchmarks", "examples", "src")
FILE_LINES_MAX, FUNCTION_LINES_MAX = 420, 70

# codecs <- agents, analytics <- streams <- infra
MAY_IMPORT = {
    "codecs": {"codecs"},
    "analytics": {"codecs", "analytics"},
    "agents": {"codecs", "agents"},
    "streams": {"codecs", "agents", "analytics", "streams"},
    "infra": {"codecs", "agents", "analytics", "streams", "infra"},
}
IMPORTS_BY_NAME = {
    (
        "agents/ranking.py",
        "analytics",
    ): "what match ranks by is what was learned: it takes the views as arguments",
}
# who may bring in what: path prefixes, with the reason
CLIENTS = {
    "faust": {"streams/shell/": "the only place that knows Faust"},
    "mode": {"streams/shell/": "Faust's own base"},
    "aiokafka": {
        "streams/shell/": "reads and writes the broker for all processors",
        "agents/sdk/runner.py": "an agent's service is a program of its own",
        "agents/sdk/client.py": "a caller is a program of its own",
        "agents/sdk/outbox.py": "an agent's service is a program of its own",
        "agents/sdk/connection.py": "an agent's service is a program of its own",
        "infra/": "the edge of the machine",
    },
    "psycopg": {"infra/": "the only place that knows SQL's client"},
    "random": {
        "streams/simulated_log.py": "the seeded scheduler of the simulator",
        "infra/demo/": "the seeded demo",
        "infra/local/host.py": "free ports",
        "agents/sdk/outbox.py": "waits between retries, so that services do not retry together",
    },
    "time": {
        "streams/shell/": "ticks, gathering, time-outs of the process",
        "agents/sdk/": "heartbeats and deadlines of a real service",
        "agents/builtin/": "measures the CPU time of its work",
        "infra/": "the edge of the machine",
    },
    "datetime": {
        "codecs/json.py": "ISO 8601 text of given times; no clock",
        "infra/": "the edge of the machine",
    },
    "uuid": {
        "agents/sdk/client.py": "an id for a request whose caller gave none",
        "infra/": "names of topics, groups, clusters",
    },
    "secrets": {"infra/": "makes the key of the tokens once"},
    "pickle": {},
    "marshal": {},
    "yaml": {},
}
# calls that read a clock in words that depend on the machine
CLOCKS = {"datetime.now": {"infra/retention.py": "the default of the injected clock"}, "datetime.utcnow": {}}
BANNED_CALLS = ("eval", "exec", "yaml.load", "pickle.load", "pickle.loads")
EVALUATES = {"tests/test_docs.py": "runs the snippets of our own pages"}
LONG_FILES = {"tests/unit/test_supervise.py": "every law of one processor, in one list"}
LONG_FUNCTIONS: dict[str, str] = {}


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
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules a file imports, anywhere in it, with the line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "aos":
            yield from ((f"aos.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno


def test_imports_run_one_way() -> None:
    wrong, used = [], set()
    for path in files(*PRODUCT):
        layer = name(path).split("/")[0]
        for module, line in imports(path):
            if not module.startswith("aos."):
                continue
            target = module.split(".")[1]
            if target in MAY_IMPORT[layer] or target not in PRODUCT:
                continue
            if (name(path), target) in IMPORTS_BY_NAME:
                used.add((name(path), target))
            else:
                wrong.append(f"{name(path)}:{line} imports {module}; {layer} may import {MAY_IMPORT[layer]}")
    assert not wrong, "\n".join(wrong)
    assert used == set(IMPORTS_BY_NAME), "an exception nobody needs any more"


def test_clients_clocks_and_chance_are_where_they_are_named() -> None:
    wrong = []
    for path in files(*PRODUCT):
        for module, line in imports(path):
            allowed = CLIENTS.get(module.split(".")[0])
            if allowed is not None and not name(path).startswith(tuple(allowed)):
                wrong.append(
                    f"{name(path)}:{line} imports {module}: `now` and `seed` are arguments of a step, clients are "
                    f"for {sorted(allowed) or 'nobody'}"
                )
    assert not wrong, "\n".join(wrong)


def test_every_exception_by_name_is_a_file_that_is_there() -> None:
    named = {place for allowed in (*CLIENTS.values(), *CLOCKS.values()) for place in allowed}
    named |= {*LONG_FILES, *EVALUATES, *(path for path, _ in IMPORTS_BY_NAME)}
    assert not [place for place in named if not (ROOT / place).exists()]


def called(node: ast.Call) -> str:
    """The last two names of what is called: ``datetime.now``."""
    return ".".join(ast.unparse(node.func).split(".")[-2:])


def test_nobody_evaluates_text_unpickles_or_reads_a_clock_in_passing() -> None:
    wrong = []
    for path in files(*ALL):
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            call = called(node)
            if call in BANNED_CALLS and name(path) not in EVALUATES:
                wrong.append(f"{name(path)}:{node.lineno} calls {call}")
            if name(path).startswith(PRODUCT) and call in CLOCKS and name(path) not in CLOCKS[call]:
                wrong.append(f"{name(path)}:{node.lineno} calls {call}: pass the time in")
    assert not wrong, "\n".join(wrong)


def test_numpys_generators_are_seeded() -> None:
    """A generator without a seed is chance in the core, and so are numpy's global functions."""
    wrong = [
        f"{name(path)}:{node.lineno} {ast.unparse(node)}"
        for path in files("streams", "codecs", "agents", "analytics")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("np.random.", "numpy.random."))
        if called(node) != "random.default_rng" or not node.args
    ]
    assert not wrong, "\n".join(wrong)


def test_functions_and_files_are_short() -> None:
    wrong = []
    for path in files(*ALL):
        lines = len(path.read_text().splitlines())
        if lines > FILE_LINES_MAX and name(path) not in LONG_FILES:
            wrong.append(
                f"{name(path)} has {lines} lines, at most {FILE_LINES_MAX}: split it by what it decides"
            )
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > FUNCTION_LINES_MAX and f"{name(path)}:{node.name}" not in LONG_FUNCTIONS:
                    wrong.append(f"{name(path)}:{node.lineno} {node.name} has {size} lines")
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_is_for() -> None:
    silent = [name(path) for path in files(*ALL) if not ast.get_docstring(tree(path))]
    assert not silent, f"no docstring: {silent}"


def test_nothing_is_left_to_be_done() -> None:
    marks = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
    left = [
        f"{name(path)}:{number}"
        for path in files(*ALL)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not left, f"write an issue instead: {left}"


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_error_code_is_used_by_the_product(code: str) -> None:
    table = next(
        node for node in tree(ROOT / "codecs/errors.py").body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "CODES"
    )  # fmt: skip
    places = [
        path for path in files(*PRODUCT) if name(path) != "codecs/errors.py" and code in path.read_text()
    ]
    rest = (ROOT / "codecs/errors.py").read_text().splitlines()[table.end_lineno :]
    assert places or code in "\n".join(rest), (
        f"{code} means something that never happens: wire it or remove it"
    )


def test_every_code_in_the_product_is_in_the_table() -> None:
    found = {
        (code, name(path))
        for path in files(*PRODUCT, "src", "examples")
        for code in re.findall(r"AOS\d{4}", path.read_text())
    }
    assert not [item for item in found if item[0] not in CODES]


def test_the_import_name_is_links_to_the_five_folders() -> None:
    package = ROOT / "src" / "aos"
    assert {path.name for path in package.iterdir() if path.is_symlink()} == set(PRODUCT)
    for folder in PRODUCT:
        assert (package / folder).resolve() == ROOT / folder
    assert {p.name for p in package.iterdir() if p.is_file()} == {
        "__init__.py",
        "__main__.py",
        "cli.py",
        "py.typed",
    }


def tracked(*folders: str) -> set[str]:
    """Files of folders that git knows and that are there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return {path for path in listed.split("\0") if path and (ROOT / path).exists()}


def uv() -> str | None:
    """The uv of this machine, or the one of the checkout."""
    own = ROOT / ".uv" / "bin" / "uv"
    return shutil.which("uv") or (str(own) if own.exists() else None)


def test_the_wheel_holds_what_git_holds(tmp_path: Path) -> None:
    """A file that is not packaged is missing only for those who install it."""
    program = uv()
    assert program is not None, "uv made this environment, and it is neither on PATH nor in .uv"
    checkout = tmp_path / "checkout"
    for path in tracked():
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, checkout / path, follow_symlinks=False)
    command = [program, "build", "--wheel", "--quiet", "--out-dir", str(tmp_path)]
    for offline in (["--offline"], []):  # what builds is in uv's cache since the environment was made
        built = subprocess.run([*command, *offline], cwd=checkout, capture_output=True, text=True)
        if built.returncode == 0:
            break
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packaged = {path.removeprefix("aos/") for path in zipfile.ZipFile(wheel).namelist()}
    only_for_the_checkout = {"infra/setup.sh"}
    assert tracked(*PRODUCT) - only_for_the_checkout == {
        path for path in packaged if path.split("/")[0] in PRODUCT
    }
    assert {"__init__.py", "__main__.py", "cli.py", "py.typed"} <= packaged


def test_the_linter_bans_what_this_file_cannot_see() -> None:
    chosen = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]["select"]
    assert {"S301", "S307"} <= set(chosen), "unpickling and eval under another name"
