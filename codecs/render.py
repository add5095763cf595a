"""The reference pages made from the declarations: docs/schemas.md, docs/errors.md, docs/topics.md.

`python -m aos.codecs.render` rewrites them; a test compares. Nobody edits them by hand.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from aos.codecs import records_calls, records_edge, records_flow, records_learning
from aos.codecs.errors import CODES
from aos.codecs.fields import Field, Record
from aos.codecs.topics import INBOX, TOPICS, Topic

DOCS = Path(__file__).resolve().parent.parent / "docs"
_MADE = "<!-- made by `python -m aos.codecs.render` from codecs/; do not edit -->\n"
_GROUPS = (
    ("What outsiders send and receive", records_edge),
    ("What agents at work ask for", records_calls),
    ("On a task's way", records_flow),
    ("What is learned and watched", records_learning),
)
_KINDS = {
    "record": "bytes or rows that are no record: kept in aos.dead-letters",
    "request": "requests that are refused: the result says rejected",
    "attempt": "attempts and requests that fail: the result or the attempt says so",
    "transient": "what passes by itself: tried again within a bound, then the worker stops",
    "settings": "settings: AOS refuses to start",
    "stack": "the local stack",
    "invariant": "bugs: the worker stops rather than go on with a wrong state",
}


def schemas() -> str:
    """All records: columns, types, units, meanings."""
    lines = [
        "# Records",
        "",
        _MADE,
        "A message's value is one Arrow IPC stream of one record type (headers `aos-record`, `aos-version`, `crc32c`);",
        "the input topics also take one JSON object a message (`content-type: application/json`), with the same keys.",
        "Columns are only added, at the end; a reader drops those it does not know and takes null for those that are",
        "not there. *required* columns must be filled in every row.",
        "",
        'In JSON: bytes are text, or `{"base64": "..."}`; ids and tokens are 32 hexadecimal digits; times are ISO 8601',
        "(UTC without a zone) or milliseconds since 1970; lists and structs are arrays and objects.",
    ]
    for title, module in _GROUPS:
        lines += ["", f"## {title}"]
        for record in vars(module).values():
            if isinstance(record, Record):
                lines += _record(record)
    return "\n".join(lines) + "\n"


def _record(record: Record) -> list[str]:
    topics = [topic.name for topic in (*TOPICS.values(), INBOX) if topic.record == record.name]
    shown = ", ".join(f"`{'aos.inbox.<service>' if name == 'aos.inbox' else name}`" for name in topics)
    lines = [
        "",
        f"### {record.name}",
        "",
        f"{record.doc}. Version {record.version}; on {shown or 'no topic'}.",
        "",
    ]
    lines += _table(record.fields)
    for column, fields in record.parts:
        lines += ["", f"Each of `{column}`:", "", *_table(fields)]
    return lines


def _table(fields: tuple[Field, ...]) -> list[str]:
    return [
        "| column | type | | unit | meaning |",
        "|---|---|---|---|---|",
        *(
            f"| `{field.name}` | {type_name(field.type)} | {'' if field.nullable else 'required'} | {field.unit} "
            f"| {field.doc.replace('|', chr(92) + '|')} |"
            for field in fields
        ),
    ]


def type_name(type: pa.DataType) -> str:
    """A type as a reader wants it."""
    if isinstance(type, pa.FixedShapeTensorType):
        return f"tensor of {'×'.join(map(str, type.shape))} {type.value_type}"
    if pa.types.is_fixed_size_list(type):
        return f"{type.list_size} {type.value_type}"
    if pa.types.is_list(type):
        return f"list of {type_name(type.value_type)}"
    if pa.types.is_struct(type):
        return "struct"
    if pa.types.is_fixed_size_binary(type):
        return f"{type.byte_width} bytes"
    if pa.types.is_timestamp(type):
        return "time (us, UTC)"
    return {"string": "text", "binary": "bytes", "halffloat": "float16"}.get(str(type), str(type))


def errors() -> str:
    """All error codes by kind."""
    lines = ["# Error codes", "", _MADE, "Codes never change their meaning; texts may."]
    for kind, title in _KINDS.items():
        lines += ["", f"## {kind}: {title}", "", "| code | what | what to do |", "|---|---|---|"]
        lines += [f"| {c.code} | {c.message} | {c.hint} |" for c in CODES.values() if c.kind == kind]
    return "\n".join(lines) + "\n"


def topics() -> str:
    """All topics with their record and properties."""
    lines = [
        "# Topics",
        "",
        _MADE,
        "Names are permanent; the setting `prefix` may stand before them. *per tenant*: tenant `t` of the settings has",
        "its own `<name>.t`, the plain name is the default tenant's; a row's tenant is its topic's, not the payload's.",
        "*spread*: as many partitions as the setting `partitions`, else one. Times are the broker's (LogAppendTime).",
        "*reserved*: made and read, but no processor of this release writes it.",
        "",
        "| topic | record | | partitions | kept | message at most | what |",
        "|---|---|---|---|---|---|---|",
        *(_topic(topic) for topic in (*TOPICS.values(), INBOX)),
    ]
    return "\n".join(lines) + "\n"


def _topic(topic: Topic) -> str:
    name = "aos.inbox.&lt;service&gt;" if topic.name == "aos.inbox" else topic.name
    notes = [
        *(["per tenant"] if topic.per_tenant else []),
        *(
            ["edge, also JSON" if topic.wants_json and topic.name != "aos.inbox" else "edge"]
            if topic.edge
            else []
        ),
        *(["reserved"] if topic.reserved else []),
    ]
    kept = "latest of each key" if topic.compacted else f"{topic.retention_ms // 3_600_000} h"
    spread = "spread" if topic.spread else "1"
    size = f"{topic.bytes_max // 1024 // 1024} MiB"
    link = f"[{topic.record}](schemas.md#{topic.record})"
    what = f"{topic.doc}. Nothing writes it yet: {topic.reserved} will" if topic.reserved else topic.doc
    return f"| {name} | {link} | {', '.join(notes)} | {spread} | {kept} | {size} | {what} |"


PAGES = {"schemas.md": schemas, "errors.md": errors, "topics.md": topics}


def main() -> None:
    """Rewrite the pages."""
    DOCS.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()
