"""Settings at run time on the real stack: set while tasks flow, in force within 10 s, kept over a restart."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from aos.codecs.settings import Settings
from aos.infra.up import Up
from aos.streams.processor import Views
from aos.streams.views import settings_version
from tests.stack.loopkit import produce_json, run, running, settings_for, sql_until

AOS = [sys.executable, "-m", "aos"]
IN_FORCE_S = 10.0
VERSION = "settings_version % 1048576"


def aos(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command on the test's servers."""
    env = {
        "AOS_BOOTSTRAP": settings.bootstrap, "AOS_DATABASE_URL": settings.database_url,
        "AOS_PREFIX": settings.prefix, "AOS_TENANTS": ",".join(settings.tenants), "PATH": "/usr/bin:/bin",
    }  # fmt: skip
    done = subprocess.run(
        [*AOS, *arguments], capture_output=True, text=True, env=env, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def changed(settings: Settings, *arguments: str) -> int:
    """The version that a `config` command made."""
    done = aos(settings, "config", *arguments, "--by", "a test", "-o", "json")
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["version"])


@contextmanager
def flowing(up: Up, name: str) -> Iterator[None]:
    """Requests ten a second for as long as it lasts."""
    stop = threading.Event()

    def flow() -> None:
        number = 0
        while not stop.wait(0.1):
            produce_json(up, [{"id": f"{name}-{number}", "text": "hello", "require": ["shout"]}])
            number += 1

    thread = threading.Thread(target=flow)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def decided_under(up: Up, version: int) -> float:
    """Seconds until SQL has a decision of this version."""
    began = time.monotonic()
    query = f"SELECT count(*) FROM aos.decisions WHERE {VERSION} = {version}"
    assert sql_until(up, query, lambda rows: rows[0][0], IN_FORCE_S)[0][0], (
        f"no decision of version {version}"
    )
    return time.monotonic() - began


def test_settings_change_while_tasks_flow_and_a_restart_keeps_them(
    bootstrap: str, database_url: str, topic_prefix: str, measured: Callable[[str], None]
) -> None:
    settings = settings_for(bootstrap, database_url, topic_prefix)
    with running(settings) as up:
        with flowing(up, "first"):
            decided_under(up, 0)
            assert changed(settings, "set", "trial_floor", "0.05") == 1
            took = decided_under(up, 1)
            assert changed(settings, "set", "candidates_max", "1", "--reason", "a trial") == 2
            decided_under(up, 2)
            assert changed(settings, "set", "candidates_max", "1") == 2, "it is so already"
            assert changed(settings, "rollback", "1") == 3
            back = decided_under(up, 3)
        measured(f"a setting decided {took:.1f} s after it was set, a rollback after {back:.1f} s")
        named = "SELECT min(cardinality(candidate_agents)) FROM aos.decisions WHERE "
        assert sql_until(up, named + f"{VERSION} = 0", bool) == [(2,)]
        assert sql_until(up, named + f"{VERSION} = 2", bool) == [(1,)]
        in_force = replace(settings, trial_floor=0.05, candidates_max=1)
        number = settings_version(Views(settings=in_force)) + 2
        (whole,) = sql_until(
            up, f"SELECT count(*) FROM aos.decisions WHERE settings_version = {number}", bool
        )
        assert whole[0], "the number is that of the settings in force and their version"
        history = sql_until(
            up, "SELECT version, name, value FROM aos.settings ORDER BY version", lambda r: len(r) > 2
        )
        assert history == [
            (1, "trial_floor", "0.05"),
            (2, "candidates_max", "1"),
            (3, "candidates_max", "null"),
        ]
        (id,) = sql_until(
            up, f"SELECT id FROM aos.tasks WHERE {VERSION} = 3 AND status = 'ok' LIMIT 1", bool
        )[0]
        assert "settings 3" in aos(settings, "why", id).stdout
    with running(settings) as up, flowing(up, "second"):
        # version 3 is the only one from now on: nothing is decided under the settings of the start alone
        asked = "SELECT id FROM aos.tasks WHERE id LIKE 'second-%' AND status = 'ok'"
        assert sql_until(up, asked, bool, 60)
        versions = f"SELECT DISTINCT {VERSION} FROM aos.tasks WHERE id LIKE 'second-%' AND status = 'ok'"
        assert sql_until(up, versions, bool) == [(3,)]


@pytest.fixture
def quiet(bootstrap: str, database_url: str, topic_prefix: str) -> Settings:
    """Topics without anybody who reads them."""
    from aos.infra.runtime import make_topics

    settings = settings_for(bootstrap, database_url, topic_prefix, tenants=("default", "acme"))
    make_topics(settings)
    return settings


def test_bad_values_are_refused_and_leave_no_trace(quiet: Settings) -> None:
    for arguments, code, says in (
        (("quality_mim", "0.5"), "AOS5001", "did you mean quality_min?"),
        (("quality_min", "1.5"), "AOS5002", "from 0 to 1"),
        (("quality_min", "much"), "AOS5002", "much"),
        (("quality_min", "0.5", "--tenant", "acne"), "AOS5002", "did you mean acme?"),
        (("attempts_max", "2"), "AOS5006", "decide alike when it reads its log again"),
        (("partitions", "2"), "AOS5006", "read once, when AOS starts"),
        (("prefetch", "2", "--tenant", "acme"), "AOS5006", "one for all tenants"),
    ):
        done = aos(quiet, "config", "set", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert code in done.stderr
        assert says in done.stderr
    assert aos(quiet, "config", "rollback", "1").returncode == 2
    assert json.loads(aos(quiet, "config", "history", "-o", "json").stdout) == []


def test_what_several_people_set_at_once_is_all_there_once(quiet: Settings) -> None:
    """Without any worker: the rule of the log decides, not a processor."""
    import asyncio

    from aos.infra.changes import Wanted, change, read, setting

    wanted = [Wanted("quality_min", "", number / 10) for number in range(1, 7)]
    wanted += [Wanted("tenant_weights", "acme", float(number)) for number in range(1, 3)]

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(change(quiet, setting(each), "somebody") for each in wanted))

    versions = sorted(version for version, _ in run(all_at_once()))
    assert versions == list(range(1, len(wanted) + 1))
    history = run(read(quiet))
    said = [(row["name"], row["tenant"], row["value"]) for row in history.changes()]
    assert sorted(said) == sorted((w.name, w.tenant, w.value) for w in wanted)
    shown = json.loads(aos(quiet, "config", "list", "-o", "json").stdout)
    weights = [row for row in shown if (row["name"], row["tenant"]) == ("tenant_weights", "acme")]
    assert [row["value"] for row in weights] == [history.state.values["tenant_weights", "acme"]]
    assert changed(quiet, "unset", "tenant_weights", "--tenant", "acme") == len(wanted) + 1
    before = aos(quiet, "config", "diff", str(len(wanted)), str(len(wanted) + 1), "-o", "json")
    (difference,) = json.loads(before.stdout)
    assert difference["after"] is None
    assert "version" in aos(quiet, "config", "history", "quality_min").stdout
