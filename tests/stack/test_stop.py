"""A stop leaves nothing to do again: whoever uses the servers ends before them, with its commits and snapshots."""

from __future__ import annotations

import time
from collections.abc import Callable

from aos.codecs.settings import Settings
from aos.infra.local import LocalStack
from aos.infra.up import worker_name
from aos.streams.topology import GROUPS
from tests.stack.loopkit import produce_json, read_topic, running


def test_workers_end_well_before_kept_servers(own_stack: LocalStack, measured: Callable[[str], None]) -> None:
    """`own_stack` lends its place: a folder that the database's user may enter. Signalled at once with their broker,
    workers end on its going away, or are killed when the time for a stop is over."""
    settings = Settings(data_dir=str(own_stack.data_dir / "another"))
    with running(settings) as up:
        produce_json(up, [{"id": f"r{n}", "text": "hi", "require": ["shout"]} for n in range(200)])
        results = read_topic(up, "aos.results", lambda rows: len({row["id"] for row in rows}) == 200)
        assert {row["status"] for row in results} == {"ok"}
        produce_json(up, [{"id": f"late-{n}", "text": "hi", "require": ["shout"]} for n in range(2000)])
        children, folder = up.stack.children, up.stack.data_dir
        began = time.monotonic()
    took = time.monotonic() - began
    measured(f"stop of a stack on kept data: {took:.1f} s")
    assert took < 12
    names = [worker_name(group, 0) for group in GROUPS]
    assert {name: children.wait(name, 0) for name in (*names, "service-one")} == dict.fromkeys(
        (*names, "service-one"), 0
    )
    for name in names:
        assert "ERROR" not in (folder / f"{name}.log").read_text()
