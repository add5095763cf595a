"""Every view topic has a view, and the run-time settings are one of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from aos.codecs.rows import from_dicts
from aos.codecs.settings import Settings, fingerprint
from aos.codecs.topics import TOPICS
from aos.streams import match
from aos.streams.live import RuntimeSettings
from aos.streams.processor import Views
from aos.streams.topology import PROCESSORS
from aos.streams.views import VIEWS, settings_version
from tests.unit.given_fleet import NOW, batch_of, fleet_of, state_rows, task_rows, views_of

ROOT = Path(__file__).resolve().parents[2]


def _setting(value: str, version: int) -> Any:
    row = {"name": "candidates_max", "tenant": "", "value": value, "version": version, "change": bytes(16)}
    return from_dicts("setting", [row | {"changed_at": NOW}])


def test_every_compacted_topic_but_the_snapshots_has_a_view() -> None:
    compacted = {topic.name for topic in TOPICS.values() if topic.compacted}
    assert set(VIEWS) == compacted - {"aos.snapshots"}
    assert all(view.topic == topic for topic, view in VIEWS.items())


def test_a_view_takes_in_messages_and_tombstones() -> None:
    view = VIEWS["aos.agent-states"]
    fleet = view.apply(view.empty(), b"crew/0", state_rows({"a": {}}))
    assert fleet.index("a") == 0
    assert view.apply(fleet, b"crew/0", None).index("a") == -1


def test_every_view_takes_a_tombstone_of_a_key_it_never_saw() -> None:
    for view in VIEWS.values():
        view.apply(view.empty(), b"nobody/0", None)


# the settings version


def _version(runtime: RuntimeSettings | None = None, **settings: Any) -> int:
    views = {} if runtime is None else {"aos.settings": runtime}
    return settings_version(Views(settings=Settings(**settings), views=views))


def test_a_step_without_settings_sees_version_0() -> None:
    assert settings_version(Views()) == 0


def test_equal_settings_have_one_version_and_others_another() -> None:
    assert _version() == _version() > 0
    assert _version(prior_strength=8) == _version(prior_strength=8.0)
    weights = {"a": 1.0, "b": 2}
    assert _version(tenant_weights=weights) == _version(tenant_weights=dict(reversed(weights.items())))
    changed = [_version(candidates_max=8), _version(discount=0.9), _version(tenant_weights=weights),
               _version(fallback_service="x"), _version(retry_waits_ms=(1,))]  # fmt: skip
    assert len({_version(), *changed}) == len(changed) + 1


def test_where_aos_runs_and_its_secret_are_no_part_of_the_version() -> None:
    elsewhere = {
        "bootstrap": "b:1",
        "prefix": "p.",
        "secret": "s",
        "data_dir": "/d",
        "commit_ms": 50,
        "keep_days": 1,
    }
    assert _version(**elsewhere) == _version()


def test_a_change_at_run_time_is_a_new_version_that_doubles_hold_exactly() -> None:
    runtime = RuntimeSettings()
    before = _version(runtime)
    assert before == _version()
    runtime.apply(b"x", _setting("9", 1))
    assert _version(runtime) - before == 1
    assert _version(runtime) < 2**52
    assert json.loads(json.dumps(float(_version(runtime)))) == _version(runtime)


def test_another_process_finds_the_same_version() -> None:
    """No hash that is salted by the process."""
    code = "from aos.codecs.settings import *; print(fingerprint(Settings()))"
    environ = {**os.environ, "PYTHONHASHSEED": "7"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert int(said.stdout) == fingerprint(Settings())


def test_the_version_covers_every_setting_that_decisions_are_made_by() -> None:
    """What the steps on a decision's way read, less what only bounds inputs, memory and answers to repeats; and the
    quotas that encode writes into the ledger's rows, by which supervise decides who comes in."""
    verbs = "match compose allocate supervise register collect learn mine optimise"
    files = [
        *(ROOT / "streams" / f"{verb}.py" for verb in verbs.split()),
        *(ROOT / "agents").glob("ledger*.py"),
    ]
    read = {
        name
        for file in files
        for pair in re.findall(
            r"settings\.([a-z]\w+)|(?:by_tenant|ordered)\([\w.]+, \"(\w+)\"", file.read_text()
        )
        for name in pair
    }
    edge = (ROOT / "streams" / "encode.py").read_text()
    read |= set(re.findall(r"\b(quota_\w+_per_s|quota_in_flight|quota_burst_s|waiting_max)\b", edge))
    known = {field.name: field.metadata["decides"] for field in fields(Settings)}
    others = {"inbox_partitions", "repeat_window_s", "repeat_rows"}
    assert {name for name in read if name in known} - others == {
        name for name, decides in known.items() if decides
    }


def test_match_stamps_it_on_its_rows() -> None:
    assert "aos.settings" in PROCESSORS["match"].views
    runtime = RuntimeSettings()
    runtime.apply(b"x", _setting("9", 1))
    views = views_of(fleet_of({"a": {}}), candidates_max=5)
    seen = Views(views.settings, views.partitions, {**views.views, "aos.settings": runtime})
    batch = batch_of(task_rows([{}, {}]), "aos.tasks")
    (output,) = match.step(match.initial(1), batch, NOW, seen, 1).outputs
    assert output.rows.column("settings_version").to_pylist() == [_version(runtime, candidates_max=5)] * 2
    assert output.rows.column("settings_version")[0].as_py() != _version(runtime)
