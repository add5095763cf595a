"""Planted bugs of the processors on a task's way."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from aos.streams.processor import Output
from tests.chaos.planting import Every, Rows, bug, outputs_by, put, result_by, rows_by, some, without_some


@bug("encode", "I1", "I2")
def encode_drops() -> None:
    """Each thirtieth request never reaches the ledger."""
    rows_by("encode", "aos.ledger", without_some(30, "requested"))


@bug("encode", "I7", "I3", "I2")
def encode_crosses_tenants() -> None:
    """Each thirtieth request is another tenant's."""
    turn = Every(30)
    rows_by("encode", "aos.ledger", lambda rows: some(rows, "tenant", turn, "umbra"))


@bug("encode", "I3")
def encode_makes_ghosts() -> None:
    """Each thirtieth request comes with one that nobody sent."""
    turn, number = Every(30), Every(1)

    def haunt(output: Output) -> list[Output]:
        if output.topic != "aos.ledger" or not turn():
            return [output]
        number()
        ghost = output.rows.slice(0, 1)
        ghost = put(
            put(ghost, "id", [f"ghost-{number._calls}"]), "request_id", [number._calls.to_bytes(16, "big")]
        )
        return [output, replace(output, rows=ghost)]

    outputs_by("encode", haunt)


@bug("encode", "I5")
def encode_reorders() -> None:
    """Rows of a fetch go to the ledger backwards."""
    rows_by("encode", "aos.ledger", lambda rows: rows.take(pa.array(range(rows.num_rows - 1, -1, -1))))


@bug("admit", "I1")
def admit_garbles() -> None:
    """Each thirtieth answer loses its payload."""
    turn = Every(30)
    rows_by("admit", "aos.ledger", lambda rows: some(rows, "payload", turn, b"garbled"))


@bug("register", "I1", "I8")
def register_forgets_skills() -> None:
    """No agent has the capability `slow`."""

    def forget(rows: Rows) -> Rows:
        skills = [
            [one for one in found if one != "slow"] for found in rows.column("capabilities").to_pylist()
        ]
        return put(rows, "capabilities", skills)

    rows_by("register", "aos.agent-states", forget)


@bug("match", "I7")
def match_crosses_tenants() -> None:
    """Each thirtieth match is another tenant's."""
    turn = Every(30)
    rows_by("match", "aos.matches", lambda rows: some(rows, "tenant", turn, "umbra"))


@bug("compose", "I1", "I5")
def compose_rejects() -> None:
    """Each fortieth plan is a rejection."""
    turn = Every(40)
    rows_by("compose", "aos.ledger", lambda rows: some(rows, "kind", turn, "rejected"))


@bug("supervise", "I1")
def supervise_answers_twice() -> None:
    """Each thirtieth result is followed by another one."""
    turn = Every(30)

    def twice(rows: Rows) -> Rows:
        again = some(rows, "status", turn, "failed")
        return pa.concat_batches([rows, again]) if again != rows else rows

    rows_by("supervise", "aos.results", twice)


@bug("supervise", "I1")
def supervise_loses_results() -> None:
    """Each thirtieth result is not written."""
    rows_by("supervise", "aos.results", without_some(30))


@bug("supervise", "I7", "I1", "I3")
def supervise_answers_others() -> None:
    """Each thirtieth message of results goes to another tenant."""
    turn = Every(30)

    def stray(output: Output) -> list[Output]:
        hit = output.topic == "aos.results" and turn()
        return [replace(output, topic="aos.results.umbra")] if hit else [output]

    outputs_by("supervise", stray)


@bug("supervise", "I2")
def supervise_leaves_no_trail() -> None:
    """Each thirtieth end of a request leaves no trail."""
    rows_by("supervise", "aos.trails", without_some(30, "request"))


@bug("allocate", "I5")
def allocate_keeps_no_journal() -> None:
    """What is decided is not journaled."""
    result_by("allocate", lambda result: result._replace(first=[]))


@bug("allocate", "I5")
def allocate_acts_otherwise() -> None:
    """Each twentieth attempt goes to another agent than was decided."""
    turn = Every(20)
    rows_by("allocate", "aos.ledger", lambda rows: some(rows, "agent", turn, "two-0"))
