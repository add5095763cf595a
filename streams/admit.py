"""admit: all that outsiders say but requests, made into rows of the inner logs.

Decides who said it (the tenant is the topic's), whether it is in range, and where it belongs.

in: aos.agents, aos.heartbeats, aos.outcomes, aos.calls, aos.feedback[.tenant], aos.controls, aos.observations[.tenant],
    raw.
out: aos.fleet (registered, beat, control) at partition 0; aos.ledger (outcome, delegated, shared at the home its agent
     echoes; cancel, redrive at home, or in every partition when home is not given); aos.corrections (feedback, at the
     request's home); aos.sightings (observations, a case in one partition); aos.dead-letters.
key: as said. state: none.
order: rows of one fetch keep their order; a message read twice gives the same rows, the first counts where they go.
errors: AOS10xx dead letters with the row's number; an outcome whose payload is too large becomes a failed one, AOS2004.
cost: .7 ms a round of six messages, 1 ms of sixteen.

An outcome, cancel or redrive carries no more of its request than its id: tenant and domain are empty, requested_at is
0, round 0; supervise knows them. The requested_at of a correction, cancel or redrive is when it was appended: an order
that is read twice must not count for a round that began after it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aos.agents import admission, calls, identity
from aos.codecs import rows as make
from aos.codecs.columns import array, ints, lengths, valid
from aos.codecs.fields import I16, I32, ID, TEXT, TIME, Record
from aos.codecs.records_calls import CALL
from aos.codecs.records_edge import CONTROL, FEEDBACK, HEARTBEAT, OBSERVATION, OUTCOME, REGISTRATION
from aos.codecs.topics import DEFAULT_TENANT, base_of
from aos.streams.dead_letters import DeadLetters
from aos.streams.gather import Gathered, gather, tenants_of
from aos.streams.origins import at_origin
from aos.streams.processor import Batch, Output, Raw, Step, Views


class _Said(NamedTuple):
    """Rows of one kind that passed `gather`, with all that a handler needs to place them."""

    gathered: Gathered
    raws: Sequence[Raw]
    views: Views
    dead: DeadLetters

    def appended(self) -> np.ndarray:
        """When each row reached the broker, int64 microseconds."""
        return np.asarray(np.array([raw.appended_at for raw in self.raws], np.int64)[self.gathered.message])

    def tenants(self) -> list[str]:
        """Each row's tenant."""
        return tenants_of(self.gathered, self.raws, self.views.settings.tenants)

    def without(self, refused: admission.Refused) -> _Said:
        """The rows that are not refused; the others become dead letters."""
        return self._replace(gathered=self.gathered.drop(refused, self.raws, self.dead))


def initial(partition: int) -> None:
    """admit remembers nothing."""


def step(state: None, batch: Batch, now: int, views: Views, seed: int) -> Step[None]:
    """Turn the raw messages of one fetch into rows of the inner logs."""
    tenants = views.settings.tenants
    dead = DeadLetters("admit", tenants)
    came = at_origin(batch.raws, dead)
    bases = {topic: base_of(topic) for topic in dict.fromkeys(raw.topic for raw in came)}
    by_base: dict[str, list[Raw]] = {}
    for raw in came:
        by_base.setdefault(bases[raw.topic], []).append(raw)
    outputs: list[Output] = []
    for base, raws in by_base.items():
        record, handle = _HANDLERS[base]
        gathered = gather(raws, record, tenants, dead).without_bad(raws, dead)
        if gathered.rows.num_rows:
            outputs += handle(_Said(gathered, raws, views, dead))
    return Step(state, [*dead.outputs(), *outputs])


def _registrations(said: _Said) -> list[Output]:
    said = said.without(admission.registrations(said.gathered.rows))
    return _fleet("registered", said.gathered.rows)


def _heartbeats(said: _Said) -> list[Output]:
    said = said.without(admission.heartbeats(said.gathered.rows))
    rows = said.gathered.rows
    names = ("service", "replica", "agents", "stopping", "busy")
    return _fleet("beat", rows.select(names))


def _fleet(kind: str, rows: pa.RecordBatch) -> list[Output]:
    if rows.num_rows == 0:
        return []
    columns: dict[str, Any] = dict(zip(rows.schema.names, rows.columns, strict=True))
    columns["kind"] = pa.repeat(kind, rows.num_rows)
    return [Output("aos.fleet", make.from_columns("fleet-entry", rows.num_rows, columns))]


def _outcomes(said: _Said) -> list[Output]:
    said = said.without(admission.outcomes(said.gathered.rows, said.views.partitions["aos.ledger"]))
    rows = said.gathered.rows
    if rows.num_rows == 0:
        return []
    names = (
        "request_id", "home", "step", "attempt", "agent", "epoch", "token", "status", "replica", "payload",
        "content_type", "score", "code", "message", "retryable", "cost_usd_micros", "cpu_us", "tokens_in",
        "tokens_out", "progress",
    )  # fmt: skip
    given = dict(zip(rows.schema.names, rows.columns, strict=True))
    columns = {name: given[name] for name in names} | _unknown(rows.num_rows)
    columns["kind"] = pa.repeat("outcome", rows.num_rows)
    columns["message"] = _cut(given["message"])
    most = said.views.settings.payload_bytes_max
    large = lengths(given["payload"]) > most
    if large.any():
        columns |= _too_large(columns, pa.array(large), most)
    ledger = make.from_columns("entry", rows.num_rows, columns)
    return _by_partition("aos.ledger", ledger, ints(given["home"], 0))


def _too_large(columns: dict[str, Any], large: pa.Array, most: int) -> dict[str, Any]:
    """Columns of outcomes where those with too large a payload have failed for good."""
    changes: dict[str, Any] = {
        "status": "failed",
        "payload": pa.scalar(None, pa.binary()),
        "content_type": pa.scalar(None, pa.string()),
        "score": pa.scalar(None, pa.float32()),
        "code": "AOS2004",
        "message": f"the output takes more than {most} bytes",
        "retryable": False,
    }
    return {name: pc.if_else(large, value, columns[name]) for name, value in changes.items()}


def _unknown(count: int) -> dict[str, Any]:
    """What a row about a request does not know of it; supervise does."""
    return {
        "tenant": pa.repeat("", count),
        "requested_at": array(np.zeros(count), TIME),
        "domain": pa.repeat("", count),
        "round": array(np.zeros(count), I16),
    }


def _calls(said: _Said) -> list[Output]:
    """What agents at work ask for, to the home of the request they work on."""
    partitions = said.views.partitions["aos.ledger"]
    said = said.without(calls.check(said.gathered.rows, partitions))
    rows, count = said.gathered.rows, said.gathered.rows.num_rows
    if count == 0:
        return []
    names = ("request_id", "home", "step", "attempt", "agent", "epoch", "token")
    head = {name: rows[name] for name in names} | {"id": rows["call"]}
    children = pc.equal(rows["action"], "delegate").to_numpy(zero_copy_only=False)
    parts: list[pa.RecordBatch] = []
    kinds = {"delegated": np.flatnonzero(children), "shared": np.flatnonzero(~children)}
    for kind, where in kinds.items():
        if not len(where):
            continue
        part, at = rows.take(pa.array(where)), said.appended()[where]
        columns = {name: column.take(pa.array(where)) for name, column in head.items()} | _unknown(len(where))
        columns["kind"] = pa.repeat(kind, len(where))
        if kind == "delegated":
            columns |= calls.delegated(part, at, said.views.settings)
        else:
            columns |= {"payload": part["context"], "context_version": part["context_version"]}
        parts.append(make.from_columns("entry", len(where), columns))
    order = np.argsort(np.concatenate(list(kinds.values())))  # as they were said
    ledger = parts[0] if len(parts) == 1 else pa.concat_batches(parts).take(pa.array(order))
    return _by_partition("aos.ledger", ledger, ints(rows["home"], 0))


def _feedback(said: _Said) -> list[Output]:
    said = said.without(admission.feedback(said.gathered.rows))
    rows, count = said.gathered.rows, said.gathered.rows.num_rows
    if count == 0:
        return []
    tenants, appended = said.tenants(), said.appended()
    ids = _request_ids(rows, tenants)
    partitions = said.views.partitions["aos.corrections"]
    homes = np.array([identity.home(one, said.views.partitions["aos.tasks"]) for one in ids], np.int32)
    domains = [
        identity.domain(tenant, name)
        for tenant, name in zip(tenants, rows["domain"].to_pylist(), strict=True)
    ]
    columns = {
        "tenant": pa.array(tenants, TEXT),
        "request_id": pa.array(ids, ID),
        "requested_at": array(appended, TIME),
        "home": array(homes, I32),
        "domain": pa.array(domains, TEXT),
        "round": array(np.zeros(count), I16),
        "id": rows["id"],
        "step_name": rows["step"],
        "score": rows["score"],
        "comment": rows["comment"],
        "given_at": array(appended, TIME),
    }
    return _by_partition(
        "aos.corrections", make.from_columns("correction", count, columns), homes % partitions
    )


def _request_ids(rows: pa.RecordBatch, tenants: list[str]) -> list[bytes]:
    """The named request_id, else the one of the client's own id."""
    return [
        named or identity.request_id(tenant, client)
        for named, tenant, client in zip(
            rows["request_id"].to_pylist(), tenants, rows["id"].to_pylist(), strict=True
        )
    ]


def _controls(said: _Said) -> list[Output]:
    partitions = said.views.partitions["aos.ledger"]
    refused = admission.controls(said.gathered.rows, partitions, said.views.settings.tenants)
    said = said.without(refused)
    rows = said.gathered.rows
    if rows.num_rows == 0:
        return []
    about_request = pc.is_in(rows["action"], pa.array(admission.REQUEST_ACTIONS))
    given_at = said.appended()[about_request.to_numpy(zero_copy_only=False)]
    outputs = _about_requests(rows.filter(about_request), given_at, partitions)
    fleet = rows.filter(pc.invert(about_request)).select(("service", "agent", "action", "reason"))
    return [*outputs, *_fleet("control", _with_service(fleet))]


def _with_service(rows: pa.RecordBatch) -> pa.RecordBatch:
    place = rows.schema.get_field_index("service")
    return rows.set_column(place, "service", rows["service"].fill_null(""))


def _about_requests(rows: pa.RecordBatch, given_at: np.ndarray, partitions: int) -> list[Output]:
    """Cancel and redrive rows: to their home, or to all partitions in turn when nobody said it."""
    count = rows.num_rows
    if count == 0:
        return []
    tenants = rows["tenant"].fill_null(DEFAULT_TENANT).to_pylist()
    columns = _unknown(count) | {
        "tenant": pa.array(tenants, TEXT),
        "request_id": pa.array(_request_ids(rows, tenants), ID),
        "requested_at": array(given_at, TIME),
        "kind": rows["action"],
        "id": rows["id"],
        "message": rows["reason"],
    }
    homes, known = ints(rows["home"], 0), valid(rows["home"])
    outputs: list[Output] = []
    for partition in range(partitions):
        columns["home"] = array(np.full(count, partition), I32)
        here = np.flatnonzero(~known | (homes == partition))
        if len(here):
            entries = make.from_columns("entry", count, columns)
            outputs.append(Output("aos.ledger", entries.take(pa.array(here)), partition))
    return outputs


def _observations(said: _Said) -> list[Output]:
    said = said.without(admission.observations(said.gathered.rows, said.appended()))
    gathered, count = said.gathered, said.gathered.rows.num_rows
    if count == 0:
        return []
    rows, places = gathered.rows, zip(gathered.message.tolist(), gathered.row.tolist(), strict=True)
    ids = [
        identity.request_id_at(
            said.raws[message].topic, said.raws[message].partition, said.raws[message].offset, row
        )
        for message, row in places
    ]
    times = np.minimum(ints(rows["time"], 0), said.appended())
    columns = {
        "tenant": pa.array(said.tenants(), TEXT),
        "event_id": pa.array(ids, ID),
        "case": rows["case"],
        "activity": rows["activity"],
        "resource": rows["resource"],
        "time": array(times, TIME),
        "score": rows["score"],
    }
    partitions = said.views.partitions["aos.sightings"]
    where = np.array([zlib.crc32(case.encode()) % partitions for case in rows["case"].to_pylist()])
    return _by_partition("aos.sightings", make.from_columns("sighting", count, columns), where)


def _cut(words: pa.Array) -> pa.Array:
    """Texts cut to what travels; agents' error messages can be stack traces."""
    if words.null_count == len(words) or not (lengths(words) > admission.WORDS_BYTES_MAX).any():
        return words
    return pc.utf8_slice_codeunits(words, 0, admission.WORDS_BYTES_MAX // 4)


def _by_partition(topic: str, rows: pa.RecordBatch, partitions: np.ndarray) -> list[Output]:
    found = np.unique(partitions)
    if len(found) == 1:
        return [Output(topic, rows, int(found[0]))]
    return [Output(topic, rows.take(pa.array(np.flatnonzero(partitions == one))), int(one)) for one in found]


_HANDLERS: dict[str, tuple[Record, Callable[[_Said], list[Output]]]] = {
    "aos.agents": (REGISTRATION, _registrations),
    "aos.heartbeats": (HEARTBEAT, _heartbeats),
    "aos.outcomes": (OUTCOME, _outcomes),
    "aos.calls": (CALL, _calls),
    "aos.feedback": (FEEDBACK, _feedback),
    "aos.controls": (CONTROL, _controls),
    "aos.observations": (OBSERVATION, _observations),
}
