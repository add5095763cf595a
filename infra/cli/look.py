"""Commands that look: agents, tasks, topics, sql, status, health, doctor."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import typer

from aos.infra.cli.output import Form, FormOption, emit, emit_one, note

AGENT_COLUMNS = ("agent", "service", "state", "capacity", "replicas", "capabilities")
TASK_COLUMNS = ("id", "status", "code", "task_kind", "score", "agents", "attempts", "latency_us")


def add(app: typer.Typer) -> None:
    """Put this module's commands into the app."""
    for name, help, lister, shower in (
        ("agents", "Agents of the fleet.", agents_list, agents_show),
        ("tasks", "Requests and how they ended.", tasks_list, tasks_show),
        ("topics", "Topics of this AOS.", topics_list, topics_show),
    ):
        group = typer.Typer(help=help, no_args_is_help=True)
        group.command("list")(lister)
        group.command("show")(shower)
        if name == "topics":
            group.command("acls")(topics_acls)
            group.command("extend")(topics_extend)
        app.add_typer(group, name=name)
    for command in (sql, status, health, doctor):
        app.command(command.__name__)(command)


def _rows(query: str, *parameters: Any) -> list[dict[str, Any]]:
    from aos.infra.cli.context import at_hand

    with at_hand() as settings:
        return _asked(settings.database_url, query, *parameters)


def _asked(url: str, query: str, *parameters: Any) -> list[dict[str, Any]]:
    from aos.infra.database import query as ask

    names, rows = ask(url, query, parameters)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _one(rows: list[dict[str, Any]], what: str, output: Form) -> None:
    if not rows:
        note(f"aos: no {what}")
        raise typer.Exit(1)
    emit_one(rows[0], output)


def agents_list(output: FormOption = Form.text) -> None:
    """List the agents.

    Example: aos agents list
    """
    emit(_rows("SELECT * FROM aos.agents ORDER BY agent"), output, AGENT_COLUMNS)


def agents_show(agent: str, output: FormOption = Form.text) -> None:
    """Show an agent and what is believed of it.

    Example: aos agents show upper
    """
    _one(_rows("SELECT * FROM aos.agents WHERE agent = %s", agent), f"agent {agent}", output)


def tasks_list(
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    status: Annotated[str | None, typer.Option(help="Only those that ended so.")] = None,
    output: FormOption = Form.text,
) -> None:
    """List requests, newest first.

    Example: aos tasks list --status failed
    """
    query = (
        "SELECT * FROM aos.tasks WHERE %s::text IS NULL OR status = %s ORDER BY requested_at DESC LIMIT %s"
    )
    emit(_rows(query, status, status, limit), output, TASK_COLUMNS)


def tasks_show(id: str, output: FormOption = Form.text) -> None:
    """Show a request, by your id or its 32 hex digits.

    Example: aos tasks show my-request
    """
    same = "id = %s OR replace(request_id::text, '-', '') = replace(%s, '-', '')"
    query = f"SELECT * FROM aos.tasks WHERE {same} ORDER BY round DESC"
    _one(_rows(query, id, id), f"request {id}", output)


def topics_list(output: FormOption = Form.text) -> None:
    """List the topics with the messages they keep.

    Example: aos topics list
    """
    from aos.infra.cli.context import at_hand
    from aos.infra.watch import topics

    with at_hand() as settings:
        emit(asyncio.run(topics(settings)), output)


def topics_extend(
    partitions: Annotated[int, typer.Argument(min=1, help="How many each topic is to have at least.")],
    dry_run: Annotated[bool, typer.Option(help="Only say what would be added.")] = False,
    output: FormOption = Form.text,
) -> None:
    """Add partitions to the topics; requests that are under way keep theirs.

    Used once all workers were started again, encode's last; docs/operations.md has the steps.

    Example: aos topics extend 4
    """
    from aos.infra.cli.context import required
    from aos.infra.partitions import extend

    rows = asyncio.run(extend(required(), partitions, dry_run))
    emit(rows, output, ("topic", "before", "after"))
    if not rows:
        note("nothing to add: it is so already")


def topics_show(topic: str, output: FormOption = Form.text) -> None:
    """Show a topic's record: columns, types, meanings.

    Example: aos topics show aos.results
    """
    from aos.codecs.topics import TOPICS, base_of, record_of

    if base_of(topic) not in (*TOPICS, "aos.inbox"):
        note(f"aos: no topic {topic}; `aos topics list` has them")
        raise typer.Exit(1)
    fields = record_of(topic).fields
    rows = [
        {"column": f.name, "type": str(f.type), "null": f.nullable, "unit": f.unit, "meaning": f.doc}
        for f in fields
    ]
    emit(
        rows,
        output,
        ("column", "type", "null", "unit", "meaning") if output is Form.json else ("column", "meaning"),
    )


def topics_acls(output: FormOption = Form.text) -> None:
    """Print who may do what on the broker, for an administrator to grant: one row a right, all else is refused.

    For the tenants, services and prefix of the settings; a secure local stack has exactly these rights.

    Example: AOS_TENANTS=default,acme AOS_SERVICES=shout aos topics acls -o json
    """
    from aos.infra.security.rights import plan
    from aos.infra.settings import load

    emit([right._asdict() for right in plan(load())], output)


def sql(query: str, output: FormOption = Form.text) -> None:
    """Run one SQL query, read only.

    Example: aos sql "SELECT agent, score FROM aos.skill_over_time ORDER BY score DESC LIMIT 5"
    """
    import psycopg

    try:
        emit(_rows(query), output)
    except psycopg.Error as error:
        note(f"aos: {str(error).splitlines()[0]}")
        raise typer.Exit(1) from None


def status(output: FormOption = Form.text) -> None:
    """Tell how each processor keeps up, and what is in flight.

    Example: aos status -o json
    """
    from aos.infra.cli.context import at_hand
    from aos.infra.watch import ended, lags

    waiting = "SELECT count(*) AS in_flight, min(requested_at) AS oldest FROM aos.unfinished"
    with at_hand() as settings:
        known = asyncio.run(lags(settings))
        (counts,) = _asked(settings.database_url, waiting)
    found = [lag.row() for lag in ended(known, counts["in_flight"])]
    if output is Form.json:
        emit_one({"processors": found, **counts}, output)
        return
    emit(found, output)
    note(
        f"in flight: {counts['in_flight']}"
        + (f", oldest since {counts['oldest']}" if counts["oldest"] else "")
    )


def health(
    wait: Annotated[bool, typer.Option(help="Wait until it is healthy.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 60.0,
    output: FormOption = Form.text,
) -> None:
    """Say whether everything runs and no alert is open; exit code 1 if not. What stands by order is only told.

    Example: aos health --wait
    """
    ends = time.monotonic() + timeout
    while True:
        found = _health()
        if found["healthy"] or not wait or time.monotonic() > ends:
            break
        time.sleep(0.5)
    emit_one(found, output)
    if not found["healthy"]:
        raise typer.Exit(1)


def _health() -> dict[str, Any]:
    from aiokafka.errors import KafkaError

    from aos.codecs.errors import AosError, StackError
    from aos.infra.cli.context import found
    from aos.infra.database import query
    from aos.infra.orders import DOWN, RUNNING
    from aos.infra.watch import lags, open_alerts

    settings = found()
    if settings is None:
        return {"healthy": False, "stack": "none is running"}
    report: dict[str, Any] = {"broker": "up", "database": "up", "processors": "up"}
    shown: dict[str, Any] = {}
    try:
        known, alerts = asyncio.run(lags(settings)), asyncio.run(open_alerts(settings))
        idle = [lag.processor for lag in known if not lag.members]
        if idle:
            report["processors"] = "not running: " + ", ".join(idle)
        standing = {lag.processor: lag.state for lag in known if lag.state not in (RUNNING, DOWN)}
        shown = {"standing": standing or None, "alerts": alerts or None}
    except (KafkaError, OSError, StackError) as error:
        report["broker"] = f"does not answer: {error}"
    try:
        query(settings.database_url, "SELECT 1 FROM aos.tasks LIMIT 1")
    except AosError as error:
        report["database"] = str(error)
    healthy = all(value == "up" for value in report.values()) and not shown.get("alerts")
    return {**report, **shown, "healthy": healthy}


def doctor(output: FormOption = Form.text) -> None:
    """Check this machine and the settings, and say what to do about what is wrong.

    Example: aos doctor
    """
    from aos.infra.doctor import checks

    found = checks()
    emit([check.row() for check in found], output)
    if not all(check.good for check in found):
        raise typer.Exit(1)
