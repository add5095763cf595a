"""All records by name. The modules beside this one declare them; nothing else does."""

from __future__ import annotations

from aos.codecs import records_calls, records_edge, records_flow, records_learning
from aos.codecs.fields import Record

RECORDS: dict[str, Record] = {
    record.name: record
    for module in (records_edge, records_flow, records_learning, records_calls)
    for record in vars(module).values()
    if isinstance(record, Record)
}
