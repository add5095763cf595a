"""Commands that make processors stand still and go on."""

from __future__ import annotations

import asyncio
import getpass
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aos.infra.cli.output import Form, FormOption, emit, note

if TYPE_CHECKING:
    from aos.codecs.settings import Settings

COLUMNS = ("processor", "state", "lag_messages", "ordered_at", "ordered_by", "reason")
LOOK_S = 0.5

Names = Annotated[list[str], typer.Argument(help="Names of processors, as `aos processors list` has them.")]
ByOption = Annotated[str, typer.Option(help="Who orders it; you, if nothing is said.")]
ReasonOption = Annotated[str, typer.Option(help="Why, for whoever looks.")]
WaitOption = Annotated[bool, typer.Option(help="Wait until it is so; exit code 1 if it is not in time.")]
TimeoutOption = Annotated[float, typer.Option(help="Seconds to wait.")]


def add(app: typer.Typer) -> None:
    """Put this module's commands into the app."""
    group = typer.Typer(help="Processors: how they are, and orders to them.", no_args_is_help=True)
    group.command("list")(processors_list)
    group.command("pause")(processors_pause)
    group.command("drain")(processors_drain)
    group.command("resume")(processors_resume)
    app.add_typer(group, name="processors")


def processors_list(output: FormOption = Form.text) -> None:
    """List the processors with what was last ordered; what is no order on their topic is told too.

    Example: aos processors list
    """
    from aos.infra.cli.context import required

    settings = required()
    rows, refused = asyncio.run(_rows(settings))
    emit(rows, output, COLUMNS)
    for one in refused:
        note(f"aos.processors, offset {one['offset']}, is no order: {one['message']}")


def processors_pause(
    names: Names,
    by: ByOption = "",
    reason: ReasonOption = "",
    wait: WaitOption = False,
    timeout: TimeoutOption = 60.0,
    output: FormOption = Form.text,
) -> None:
    """Make processors stand still between two messages, with all they did acknowledged and committed.

    It holds over restarts, until `resume`. What waits for them waits in its topic: mind the topic's retention.

    Example: aos processors pause learn mine --reason "the models are looked at" --wait
    """
    _order("pause", names, by, reason, wait, timeout, output)


def processors_drain(
    names: Names,
    by: ByOption = "",
    reason: ReasonOption = "",
    wait: WaitOption = False,
    timeout: TimeoutOption = 60.0,
    output: FormOption = Form.text,
) -> None:
    """Take in no requests any more, and let all that are under way end; `drained` then. Only encode can be drained.

    Example: aos processors drain encode --wait --timeout 600
    """
    _order("drain", names, by, reason, wait, timeout, output)


def processors_resume(
    names: Names,
    by: ByOption = "",
    reason: ReasonOption = "",
    wait: WaitOption = False,
    timeout: TimeoutOption = 60.0,
    output: FormOption = Form.text,
) -> None:
    """Let processors go on where they stand.

    Example: aos processors resume learn mine
    """
    _order("resume", names, by, reason, wait, timeout, output)


def _order(
    action: str, names: list[str], by: str, reason: str, wait: bool, timeout: float, output: Form
) -> None:
    from aos.infra.cli.context import required

    settings = required()
    asyncio.run(_give(settings, action, names, by or getpass.getuser(), reason or None))
    goal = {"pause": "paused", "drain": "drained", "resume": "running"}[action]
    ends = time.monotonic() + timeout
    while True:
        rows, _ = asyncio.run(_rows(settings))
        chosen = [row for row in rows if row["processor"] in names]
        reached = all(row["state"] == goal for row in chosen)
        if reached or not wait or time.monotonic() > ends:
            break
        time.sleep(LOOK_S)
    emit(chosen, output, COLUMNS)
    if wait and not reached:
        raise typer.Exit(1)


async def _give(settings: Settings, action: str, names: list[str], by: str, reason: str | None) -> None:
    from aos.infra.orders import check, give

    for name in names:  # all of them or none
        check(name, action)
    for name in names:
        await give(settings, name, action, by, reason)


async def _rows(settings: Settings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every processor with its last order, and what was no order."""
    from aos.infra.database import query
    from aos.infra.orders import read
    from aos.infra.watch import ended, lags

    heard, known = await read(settings), await lags(settings)
    if any(lag.state == "draining" for lag in known):
        _, ((in_flight,),) = await asyncio.to_thread(
            query, settings.database_url, "SELECT count(*) FROM aos.unfinished"
        )
        known = ended(known, in_flight)
    rows = []
    for lag in known:
        order = heard.orders.last.get(lag.processor)
        rows.append({**lag.row(), **(order._asdict() if order is not None else {})})
    return rows, heard.refused
