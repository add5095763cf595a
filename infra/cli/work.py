"""Commands about requests: submit, results, feedback, why."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aos.infra.cli.output import Form, FormOption, emit, emit_one, note

if TYPE_CHECKING:
    from aos.codecs.settings import Settings

RESULT_COLUMNS = ("id", "status", "code", "score", "agents", "attempts", "latency_us", "payload")


def add(app: typer.Typer) -> None:
    """Put this module's commands into the app."""
    app.command("submit")(submit)
    app.command("results")(results)
    app.command("feedback")(feedback)
    app.command("why")(why)


def submit(
    text: Annotated[str | None, typer.Argument(help="What is asked, in words.")] = None,
    require: Annotated[
        list[str] | None, typer.Option(help="A capability that is needed; may be repeated.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="JSON file with a request, or a list of them; - for stdin.")
    ] = None,
    payload: Annotated[Path | None, typer.Option(help="File with input bytes.")] = None,
    kind: Annotated[str | None, typer.Option(help="Kind of task.")] = None,
    id: Annotated[str | None, typer.Option(help="Your own id; a repeated one gets the same result.")] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=3, help="0 (first) to 3 (last).")] = None,
    deadline_ms: Annotated[int | None, typer.Option(help="Give up after this time.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose request it is.")] = "default",
    wait: Annotated[bool, typer.Option(help="Wait for the result and print it.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 60.0,
    output: FormOption = Form.text,
) -> None:
    """Send a request; with --wait print how it ended (exit code 1 unless ok).

    Example: aos submit "hello world" --require uppercase --wait
    """
    one = {
        "id": id, "text": text, "task_kind": kind, "require": require or None, "priority": priority,
        "deadline_ms": deadline_ms, "payload": payload.read_bytes() if payload else None,
    }  # fmt: skip
    requests = (
        _from_file(file) if file else [{name: value for name, value in one.items() if value is not None}]
    )
    from aos.infra.cli.context import at_hand

    with at_hand() as settings:
        rows = asyncio.run(_submit(settings, requests, tenant, wait, timeout))
    emit(rows, output, RESULT_COLUMNS if wait else ("id",))
    if wait and any(row["status"] != "ok" for row in rows):
        raise typer.Exit(1)


def _from_file(file: Path) -> list[dict[str, Any]]:
    from aos.codecs.json import read
    from aos.codecs.schemas import RECORDS

    text = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    found = json.loads(text)
    objects = found if isinstance(found, list) else [found]
    rows = [read(json.dumps(each).encode(), RECORDS["request"]).to_pylist()[0] for each in objects]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


async def _submit(
    settings: Settings, requests: list[dict[str, Any]], tenant: str, wait: bool, timeout: float
) -> list[dict[str, Any]]:
    from aos.agents.sdk.client import Client
    from aos.infra.security.connections import clients

    async with Client(prefix=settings.prefix, tenant=tenant, kafka=clients(settings)) as client:
        if not wait:
            return [{"id": id} for id in await client.submit(requests)]
        return list(await asyncio.gather(*(client.run(timeout=timeout, **request) for request in requests)))


def results(
    follow: Annotated[bool, typer.Option(help="Go on with new ones until Ctrl-C.")] = False,
    tenant: Annotated[str, typer.Option(help="Whose results.")] = "default",
    output: FormOption = Form.text,
) -> None:
    """Print the results on the topic from its beginning; each result stands there at least once.

    Example: aos results --follow -o json
    """
    from aos.infra.cli.context import at_hand

    try:
        with at_hand() as settings:
            asyncio.run(_results(settings, follow, tenant, output))
    except KeyboardInterrupt:
        note("")


async def _results(settings: Settings, follow: bool, tenant: str, output: Form) -> None:
    from aos.agents.sdk.client import follow as follow_topic
    from aos.codecs import wire
    from aos.codecs.topics import record_of, tenant_topic
    from aos.infra.cli.output import plain
    from aos.infra.security.connections import clients

    topic = settings.prefix + tenant_topic("aos.results", tenant)
    consumer = await follow_topic(clients(settings), topic, begin=True)
    ends = await consumer.end_offsets(consumer.assignment())
    try:
        while follow or not all([await consumer.position(p) >= end for p, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for message in records:
                    for row in wire.decode(
                        message.value, dict(message.headers), record_of("aos.results")
                    ).to_pylist():
                        line = json.dumps(plain(row)) if output is Form.json else _line(row)
                        print(line, flush=True)
    finally:
        await consumer.stop()


def _line(row: dict[str, Any]) -> str:
    code = f" {row['code']}" if row["code"] else ""
    id, agents = row["id"] or row["request_id"].hex(), ", ".join(row["agents"])
    return f"{row['finished_at']:%H:%M:%S} {id} {row['status']}{code} by {agents}"


def feedback(
    id: Annotated[str, typer.Argument(help="The request's id.")],
    score: Annotated[float, typer.Argument(min=0, max=1, help="How good it was, 0 to 1.")],
    step: Annotated[str | None, typer.Option(help="Name of the step it is about; the last one else.")] = None,
    comment: Annotated[str | None, typer.Option(help="In words.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose request it was.")] = "default",
) -> None:
    """Say how good a result was: it replaces the score that was learned from.

    Example: aos feedback my-request 0.9
    """
    from aos.infra.cli.context import at_hand

    row = {"id": id, "score": score, "step": step, "comment": comment}
    with at_hand() as settings:
        asyncio.run(_feedback(settings, row, tenant))
    note("taken")


async def _feedback(settings: Settings, row: dict[str, Any], tenant: str) -> None:
    from aos.agents.sdk.client import Client
    from aos.infra.security.connections import clients

    async with Client(prefix=settings.prefix, tenant=tenant, kafka=clients(settings)) as client:
        await client.send("aos.feedback", [row])


def why(
    id: Annotated[str, typer.Argument(help="The request's id (yours, or the 32 hex digits).")],
    output: FormOption = Form.text,
) -> None:
    """Tell why a task went where it went: candidates, scores, chances, filtered ones, outcome.

    Example: aos why my-request
    """
    from aos.infra.cli.context import at_hand
    from aos.infra.why import explain, tell

    with at_hand() as settings:
        found = explain(settings.database_url, id)
    if output is Form.json:
        emit_one(found, output)
    else:
        print(tell(found))
