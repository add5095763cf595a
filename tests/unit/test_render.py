"""The reference pages say what the code says."""

from __future__ import annotations

import pytest

from aos.codecs import render
from aos.codecs.schemas import RECORDS
from aos.codecs.topics import TOPICS


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
