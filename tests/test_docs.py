"""What the pages tell a reader to type works: each command is run by a test that stands here by name, each option
exists, each snippet runs, each link leads somewhere.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import typer

from aos.codecs.errors import CODES
from aos.codecs.settings import Settings
from aos.codecs.topics import TOPICS, base_of
from aos.infra.cli import app
from aos.infra.security.rights import users
from aos.infra.surface import VIEWS
from tests.source import ALL

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path for folder in (".", "docs", "benchmarks", "examples") for path in (ROOT / folder).glob("*.md")
)
PROGRAMS = ("make", "aos", ".venv/bin/aos", ".venv/bin/python", "python", "pip", "jq")
OUTSIDE_SETTINGS = {"AOS_REPLICA", "AOS_SETTINGS_FILE"}  # says where settings stand
USERS = users(Settings(tenants=("default", "acme"), services=("shouting",)))  # at Kafka
SHELL = ("sh", "bash", "shell", "console")

COMMANDS_TEST = "tests/stack/test_commands.py"
CYCLE = f"{COMMANDS_TEST}::test_a_request_is_submitted_answered_explained_and_rated"
LISTS = f"{COMMANDS_TEST}::test_what_there_is_can_be_listed"
ENDS = f"{COMMANDS_TEST}::test_nothing_is_left_when_up_ends"
LETTERS = "tests/stack/test_dead_letters.py"
PLAIN = "tests/stack/test_contract.py::test_the_example_submits_answers_and_reads_results"

# a command of the pages, by how it begins, and the test that runs it
RUN_BY = {
    "make up": ENDS,
    "make demo": "tests/stack/test_demo.py::test_a_demo_that_is_ended_half_way_leaves_no_process",
    ".venv/bin/python examples/shout.py": CYCLE,
    ".venv/bin/aos submit": CYCLE,
    ".venv/bin/aos why": CYCLE,
    ".venv/bin/aos sql": LISTS,
    "python examples/plain_client.py all": PLAIN,
    "aos config": f"{LETTERS}::test_a_quota_that_is_set_while_aos_runs_refuses_with_a_typed_answer",
    "aos processors": "tests/stack/test_processors.py"
    "::test_processors_stand_and_go_on_by_command_and_every_request_ends_once",
    "aos replay log": "tests/stack/test_shadow.py::test_a_replay_makes_the_rows_again_and_changes_nothing",
    "aos dead-letters": f"{LETTERS}::test_what_is_sent_back_is_the_request_it_was_and_is_not_done_twice",
}
# commands that no test runs, and why
NOT_RUN = {
    "aos topics extend": "nothing takes partitions away again; what is behind it is run by tests/stack/test_growth.py",
    "make test": "it is what runs this test",
    "make chaos": "minutes of killing; tests/stack/test_chaos.py runs the command behind it with a small suite",
    "make soak": "half an hour; tests/stack/test_chaos.py runs the command behind it with fewer tasks",
    ".venv/bin/python -m tests.chaos.bugs": "twenty minutes; the laws are broken in tests/unit/test_chaos_judge.py",
    ".venv/bin/python -m tests.chaos": "the negative control, run by tests/stack/test_chaos.py",
    "make setup": "it makes the environment that this test runs in",
    "make fuzz": "the command behind it is run by tests/fuzz/test_fuzz.py",
    "make bench": "40 minutes; what it reckons with is tested in tests/unit/test_benchmarks.py",
    "python examples/plain_client.py": "its parts one by one: `all`, which is run, plays the three of them",
    "pip install pyarrow confluent-kafka": "both are in uv.lock, and the example is run with them",
    "jq": "a program of the reader's machine; its input is tested in tests/unit/test_benchmarks.py",
}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    """Every fenced block of every page."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^( *)```(\w*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            name = page.relative_to(ROOT).as_posix()
            found.append(Block(name, line, match[2], textwrap.dedent(match[3])))
    return found


def commands() -> Iterator[tuple[Block, str]]:
    """Every command line of the pages, without its comment and the settings before it."""
    for block in blocks():
        if block.language not in ("", *SHELL):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if _is_command(line) else []
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words and words[0] in PROGRAMS:
                yield block, shlex.join(words)
            else:
                assert block.language not in SHELL or not line.strip(), f"{block}: nobody knows {line!r}"


def _is_command(line: str) -> bool:
    return re.match(r"^([A-Z_]+=\S+ )*(\S+)", line) is not None and any(
        word in PROGRAMS for word in line.split()[:3]
    )


def covering(command: str) -> str | None:
    """The longest beginning of a command that is in one of the lists."""
    words = shlex.split(command)
    starts = (" ".join(words[:count]) for count in range(len(words), 0, -1))
    return next((start for start in starts if start in RUN_BY or start in NOT_RUN), None)


def test_every_command_of_the_pages_is_run_by_a_test_or_said_not_to_be() -> None:
    found = list(commands())
    assert len(found) > 8, "the pages have lost their commands, or this test cannot find them"
    orphans = [f"{block}: {command}" for block, command in found if covering(command) is None]
    assert not orphans, f"name the test in RUN_BY, or the reason in NOT_RUN: {orphans}"
    idle = {*RUN_BY, *NOT_RUN} - {covering(command) for _, command in found}
    assert not idle, f"no page says that any more: {idle}"
    assert not set(RUN_BY) & set(NOT_RUN)


@pytest.mark.parametrize("named", sorted(set(RUN_BY.values())))
def test_the_tests_that_run_the_commands_are_there(named: str) -> None:
    path, function = named.split("::")
    tree = ast.parse((ROOT / path).read_text())
    assert function in {
        node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def test_every_make_target_of_the_pages_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block, command in commands():
        words = shlex.split(command)
        if words[0] == "make":
            asked = [word for word in words[1:] if "=" not in word]
            assert set(asked) <= targets, f"{block}: make has no {asked}"
    for page in PAGES:
        asked = re.findall(r"`make ([a-z-]+)", page.read_text())
        assert set(asked) <= targets, f"{page.name}: {set(asked) - targets}"


def aos_commands() -> list[Any]:
    """Every call of ``aos`` in the pages' blocks and in the examples of the commands' own help."""
    found = [
        pytest.param(command.split("aos ", 1)[1], id=f"{block}-{command[:40]}")
        for block, command in commands()
        if shlex.split(command)[0].endswith("aos")
    ]
    help_page = (ROOT / "docs" / "cli.md").read_text()
    for example in re.findall(r"Examples?:\s+aos (.+?)\n\n", help_page, re.DOTALL):
        found.append(pytest.param(" ".join(example.split()), id=f"help-{example[:40]}"))
    return found


@pytest.mark.parametrize("command", aos_commands())
def test_every_aos_command_of_the_pages_is_understood(command: str) -> None:
    """Sub-command, options and number of arguments, without doing it."""
    words = shlex.split(command, comments=True)
    found: Any = typer.main.get_command(app)
    context = None
    while hasattr(found, "commands"):
        name = words.pop(0)
        assert name in found.commands, f"there is no command {name}"
        found = found.commands[name]
    words = ["/dev/null" if word.isupper() and "FILE" in word else word for word in words]
    context = found.make_context(found.name, words, resilient_parsing=False)
    assert not context.args


def test_every_option_of_the_benchmarks_that_a_page_names_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.__main__ import parsed

    lines = [words for _, command in commands() if (words := shlex.split(command))[:2] == ["make", "bench"]]
    assert lines
    for words in lines:
        given = [word.removeprefix("ARGS=") for word in words[2:]]
        monkeypatch.setattr("sys.argv", ["benchmarks", *shlex.split(" ".join(given))])
        parsed()  # a SystemExit names what is unknown


def pythons() -> list[Any]:
    return [pytest.param(block, id=str(block)) for block in blocks() if block.language == "python"]


@pytest.mark.parametrize("block", pythons())
def test_python_of_the_pages_runs(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of an example stands in it word by word; anything else is run up to where it would serve."""
    examples = [path.read_text() for path in (ROOT / "examples").glob("*.py")]
    if any(block.text in text or block.text in textwrap.dedent(text) for text in examples):
        return
    if any(textwrap.indent(block.text, " " * depth) in text for text in examples for depth in (4, 8, 12, 16)):
        return
    from aos.agents import Service

    served: list[Service] = []
    monkeypatch.setattr(Service, "run", lambda service: served.append(service))
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block.text, str(block), "exec"), names)
    services = [value for value in names.values() if isinstance(value, Service)]
    assert services, "a snippet that declares nothing"
    assert served == services


def test_the_example_of_the_first_page_is_the_one_in_the_folder() -> None:
    """The README's agent and `examples/shout.py` are one program; the file says a little more."""
    (block,) = [b for b in blocks() if b.page == "README.md" and b.language == "python"]
    functions = [node for node in ast.parse(block.text).body if isinstance(node, ast.AsyncFunctionDef)]
    there = ast.parse((ROOT / "examples" / "shout.py").read_text())
    same = [node for node in there.body if isinstance(node, ast.AsyncFunctionDef)]
    assert [ast.unparse(f.body[0]) for f in functions] == [ast.unparse(f.body[0]) for f in same]
    assert [f.name for f in functions] == [f.name for f in same]


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            lost.append(target)
    assert not lost


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the forges make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def inline(page: Path) -> list[str]:
    """What stands between single back quotes in the running text."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


MADE_BY_READERS = ("aos.toml", "history.ndjson")  # by the reader, by `make bench`


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_every_file_module_and_command_the_text_names_is_there(page: Path) -> None:
    lost = []
    app_command: Any = typer.main.get_command(app)
    for word in inline(page):
        path = re.fullmatch(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|md|toml|sql|sh|ndjson|lock)", word)
        path = path or re.match(rf"(?:{'|'.join((*ALL, 'docs'))})/[\w./-]*$", word)
        if path and Path(word).name not in MADE_BY_READERS:
            there = [(base / word).exists() for base in (ROOT, page.parent)]
            lost += [] if any(there) else [word]
        module = re.match(r"python -m (aos\.[\w.]+)", word)
        if module and importlib.util.find_spec(module[1]) is None:
            lost.append(word)
        command = re.match(r"aos ([a-z-]+)", word)
        if command and command[1] not in app_command.commands:
            lost.append(word)
    assert not lost, f"{page.name} names what is not there: {lost}"


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_every_setting_topic_and_code_the_text_names_is_declared(page: Path) -> None:
    text = page.read_text()
    settings = {f"AOS_{field.name.upper()}" for field in dataclasses.fields(Settings)}
    lost = set(re.findall(r"\bAOS_[A-Z_]+\b", text)) - settings - OUTSIDE_SETTINGS
    lost |= set(re.findall(r"\bAOS\d{4}\b", text)) - set(CODES)
    known = {*TOPICS, "aos.inbox", "aos.ready", *(f"aos.{view}" for view in VIEWS)}
    for topic in set(re.findall(r"`(aos\.[a-z]+(?:[.-][a-z0-9]+)*)`", text)):
        if (
            base_of(topic) not in known
            and topic not in (*MADE_BY_READERS, *USERS)
            and not (ROOT / "src" / topic.replace(".", "/")).exists()
        ):
            lost.add(topic)
    assert not lost, f"{page.name} names what is not declared: {lost}"


def queries() -> list[Any]:
    """SQL that the pages let a reader type; the cookbook's own page is tested in tests/stack/test_cookbook.py."""
    return [
        pytest.param(shlex.split(command)[2], id=str(block))
        for block, command in commands()
        if shlex.split(command)[0].endswith("aos") and shlex.split(command)[1] == "sql"
    ]


@pytest.mark.parametrize("query", queries())
def test_sql_of_the_pages_is_understood_by_the_database(query: str, database_url: str) -> None:
    from aos.infra.migrate import migrate

    migrate(database_url)
    with psycopg.connect(database_url) as link:
        assert link.execute(query.encode()).description is not None
