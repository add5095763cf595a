"""The reference pages say what the code says."""

from __future__ import annotations

import pytest

from aos.codecs import render
from aos.codecs.schemas import RECORDS
from aos.codecs.topics import TOPICS
from aos.streams.topology import PROCESSORS


@pytest.mark.parametrize("name", sorted(render.PAGES))
def test_pages_are_what_the_declarations_make_of_them(name: str) -> None:
    page = render.DOCS / name
    assert page.read_text() == render.PAGES[name](), "run: python -m aos.codecs.render"


def test_every_record_topic_and_column_is_on_its_page() -> None:
    schemas, topics = render.schemas(), render.topics()
    for record in RECORDS.values():
        assert f"### {record.name}\n" in schemas
        for field in record.fields:
            assert f"| `{field.name}` |" in schemas
    for topic in TOPICS:
        assert f"| {topic} |" in topics


def test_a_topic_that_nothing_writes_is_reserved_and_its_page_says_so() -> None:
    """Written by a processor, by outsiders (input topics), by the shell (snapshots, alerts) or a command (settings);
    else the page must say it."""
    written = {topic for processor in PROCESSORS.values() for topic in processor.writes}
    written |= {"aos.snapshots", "aos.settings", "aos.alerts"}
    unwritten = {name for name, topic in TOPICS.items() if name not in written and not topic.wants_json}
    assert unwritten == {name for name, topic in TOPICS.items() if topic.reserved}
    lines = {line.split(" ")[1]: line for line in render.topics().splitlines() if line.startswith("| aos.")}
    assert {name for name, line in lines.items() if "Nothing writes it yet: " in line} == unwritten
