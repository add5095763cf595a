"""Locked dependencies and their advisories: what is found is told, and what could not be checked is never good."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests import advisories
from tests.advisories import (
    DAYS_MAX,
    LIST,
    LOCK,
    Unchecked,
    asked,
    check,
    known,
    locked,
    refreshed,
    registry_of,
)

TODAY = date(2026, 11, 22)
LOCKED = """
[[package]]
name = "one"
version = "1.2"
source = { registry = "https://registry.example/simple" }
[[package]]
name = "ours"
version = "0.1"
source = { editable = "." }
"""
LISTED = """
reviewed = 2026-11-22
source = "by hand"
[packages]
one = "1.2"
[[advisory]]
id = "CVE-1"
package = "one"
affected = "<1.2"
says = "it leaks"
"""


def test_no_locked_dependency_is_in_a_known_advisory_and_the_list_is_young_enough_to_say_so() -> None:
    assert check(LOCK.read_text(), LIST.read_text(), date.today()) == []


def test_a_locked_version_in_an_advisorys_range_is_told_with_the_reason() -> None:
    assert check(LOCKED, LISTED, TODAY) == []
    (found,) = check(LOCKED, LISTED.replace("<1.2", "<1.3"), TODAY)
    assert found == "one 1.2: CVE-1, it leaks"
    accepted = LISTED.replace("<1.2", "<1.3") + 'accepted = "only its tests leak"\n'
    assert check(LOCKED, accepted, TODAY) == []


def test_a_locked_version_of_today_would_be_found_if_it_were_an_old_one() -> None:
    """The committed list itself can find something: the same lock with a release of old."""
    packages = locked(LOCK.read_text())
    old = LOCK.read_text().replace(f'"{packages["pyarrow"]}"', '"14.0.0"')
    listed = LIST.read_text().replace(f'"pyarrow" = "{packages["pyarrow"]}"', '"pyarrow" = "14.0.0"')
    assert any("CVE-2023-47248" in found for found in check(old, listed, known(listed).reviewed))


@pytest.mark.parametrize(
    ("lock", "listed", "today"),
    [
        (LOCKED, LISTED, TODAY + timedelta(days=DAYS_MAX + 1)),  # too old
        (LOCKED, LISTED, TODAY - timedelta(days=1)),  # from the future
        (LOCKED, LISTED.replace('one = "1.2"', ""), TODAY),  # nobody looked at this package
        (LOCKED, LISTED.replace('one = "1.2"', 'one = "1.1"'), TODAY),  # … at this version
        (LOCKED, "", TODAY),
        (LOCKED, "{", TODAY),
        (LOCKED, LISTED.replace("2026-11-22", '"yesterday"'), TODAY),
        (LOCKED, LISTED.replace("by hand", ""), TODAY),
        (LOCKED, LISTED.replace("<1.2", "older"), TODAY),
        (LOCKED, LISTED.replace("says", "sais"), TODAY),
        ("", LISTED, TODAY),
        ("{", LISTED, TODAY),
        (LOCKED.replace("registry =", "git ="), LISTED, TODAY),
        (LOCKED.replace('"1.2"', '"one.two"'), LISTED.replace('"1.2"', '"one.two"'), TODAY),
    ],
)
def test_what_could_not_be_checked_is_an_error_and_never_a_good_result(
    lock: str, listed: str, today: date
) -> None:
    with pytest.raises(Unchecked):
        check(lock, listed, today)


def test_the_command_tells_found_and_unchecked_apart_from_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["advisories"])
    assert advisories.main() == 0
    monkeypatch.setattr(advisories, "LIST", tmp_path / "nothing.toml")
    assert advisories.main() == 2
    assert "not checked" in capsys.readouterr().err
    old = tmp_path / "list.toml"
    found = (
        LIST.read_text() + '\n[[advisory]]\nid = "X"\npackage = "pyarrow"\naffected = ">0"\nsays = "all"\n'
    )
    old.write_text(found)
    monkeypatch.setattr(advisories, "LIST", old)
    assert advisories.main() == 1


class Registry(http.server.BaseHTTPRequestHandler):
    """Answers as a registry does."""

    answers: dict[str, bytes] = {}  # noqa: RUF012 (set by each test)

    def do_GET(self) -> None:
        answer = self.answers.get(self.path)
        self.send_response(200 if answer is not None else 404)
        self.end_headers()
        self.wfile.write(answer or b"")

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture
def registry() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_refresh_asks_the_locks_own_registry_about_each_version_and_keeps_what_was_known(
    registry: str,
) -> None:
    lock = LOCKED.replace("https://registry.example", registry)
    assert registry_of(lock) == registry
    said = {"id": "GHSA-2", "summary": "it crashes", "fixed_in": ["1.3"], "withdrawn": None}
    gone = {"id": "GHSA-3", "summary": "never mind", "fixed_in": [], "withdrawn": "2026-01-01"}
    Registry.answers = {"/pypi/one/1.2/json": json.dumps({"vulnerabilities": [said, gone]}).encode()}
    new = refreshed(lock, LISTED, TODAY, lambda name, version: asked(registry, name, version))
    assert known(new).reviewed == TODAY
    assert [each.id for each in known(new).advisories] == ["CVE-1", "GHSA-2"]
    assert check(lock, new, TODAY) == ["one 1.2: GHSA-2, it crashes (fixed in 1.3)"]


@pytest.mark.parametrize("answer", [None, b"{", b"{}", b'{"vulnerabilities": null}'])
def test_a_refresh_that_got_no_answer_is_no_refresh(registry: str, answer: bytes | None) -> None:
    Registry.answers = {} if answer is None else {"/pypi/one/1.2/json": answer}
    with pytest.raises(Unchecked):
        refreshed(LOCKED, LISTED, TODAY, lambda name, version: asked(registry, name, version))
