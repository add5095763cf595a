"""Commands that change settings while AOS runs, and tell what was changed."""

from __future__ import annotations

import asyncio
import getpass
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aos.infra.cli.output import Form, FormOption, emit, emit_one, note

if TYPE_CHECKING:
    from aos.infra.changes import Wanted

HISTORY_COLUMNS = ("version", "name", "tenant", "value", "changed_at", "changed_by", "reason", "refused")
DIFF_COLUMNS = ("name", "tenant", "before", "after")
LIST_COLUMNS = ("name", "tenant", "value", "start", "range", "of", "version")

TenantOption = Annotated[str, typer.Option(help="Only for this tenant.")]
ByOption = Annotated[str, typer.Option(help="Who changes it; you, if nothing is said.")]
ReasonOption = Annotated[str, typer.Option(help="Why, for the history.")]


def add(app: typer.Typer) -> None:
    """Put this module's commands into the app."""
    group = typer.Typer(help="Settings that change while AOS runs.", no_args_is_help=True)
    group.command("set")(config_set)
    group.command("unset")(config_unset)
    group.command("list")(config_list)
    group.command("history")(config_history)
    group.command("diff")(config_diff)
    group.command("rollback")(config_rollback)
    app.add_typer(group, name="config")


def config_set(
    name: Annotated[
        str, typer.Argument(help="Name of the setting; `aos config list` has those that change.")
    ],
    value: Annotated[str, typer.Argument(help="Its value; a dict as JSON.")],
    tenant: TenantOption = "",
    by: ByOption = "",
    reason: ReasonOption = "",
    output: FormOption = Form.text,
) -> None:
    """Change a setting for all, or for one tenant; in force within 10 s, without a restart.

    Example: aos config set quality_min 0.4 --tenant default --reason "too many poor answers"
    """
    _set(name, value, tenant, by, reason, output)


def config_unset(
    name: Annotated[str, typer.Argument(help="Name of the setting.")],
    tenant: TenantOption = "",
    by: ByOption = "",
    reason: ReasonOption = "",
    output: FormOption = Form.text,
) -> None:
    """Give a setting the value again with which AOS was started (of a tenant: that of all).

    Example: aos config unset quality_min --tenant default
    """
    _set(name, None, tenant, by, reason, output)


def _set(name: str, value: str | None, tenant: str, by: str, reason: str, output: Form) -> None:
    from aos.infra.changes import change, parsed, setting
    from aos.infra.cli.context import required

    settings = required()
    wanted = parsed(settings, name, value, tenant)
    _told(*asyncio.run(change(settings, setting(wanted), by or getpass.getuser(), reason)), output)


def _told(version: int, changed: list[Wanted], output: Form) -> None:
    """A change that was made, or that there was none to make."""
    if not changed:
        note("nothing to change: it is so already")
    rows = [each._asdict() for each in changed]
    if output is Form.json:
        emit_one({"version": version, "changed": rows}, output)
        return
    emit_one({"version": version}, output)
    if rows:
        emit(rows, output)


def config_list(output: FormOption = Form.text) -> None:
    """List the settings that can be changed while AOS runs, with what is in force.

    `start` is the value with which AOS would be started from here.

    Example: aos config list
    """
    from aos.codecs.settings import LIVE, Settings
    from aos.infra.changes import read
    from aos.infra.cli.context import required

    settings = required()
    history = asyncio.run(read(settings))
    last = {(row["name"], row["tenant"]): row["version"] for row in history.changes()}
    rows: list[dict[str, Any]] = []
    for item in fields(Settings):
        if item.name not in LIVE:
            continue
        meta, start = item.metadata, getattr(settings, item.name)
        for tenant in ["", *sorted(t for name, t in history.state.values if name == item.name and t)]:
            place = (item.name, tenant)
            rows.append(
                {
                    "name": item.name, "tenant": tenant, "value": history.state.values.get(place, start),
                    "start": start, "range": [meta["low"], meta["high"]], "of": LIVE[item.name],
                    "version": last.get(place, 0), "meaning": meta["doc"],
                }
            )  # fmt: skip
    emit(rows, output, LIST_COLUMNS)


def config_history(
    name: Annotated[str | None, typer.Argument(help="Only this setting.")] = None,
    output: FormOption = Form.text,
) -> None:
    """List all changes, oldest first; an empty value is that of the start again.

    Example: aos config history quality_min
    """
    from aos.infra.changes import read
    from aos.infra.cli.context import required

    emit(asyncio.run(read(required())).changes(name), output, HISTORY_COLUMNS)


def config_diff(
    a: Annotated[int, typer.Argument(help="A version; 0 is the start.")],
    b: Annotated[int, typer.Argument(help="Another version.")],
    output: FormOption = Form.text,
) -> None:
    """List what differs between two versions; an empty value is that of the start.

    Example: aos config diff 0 3
    """
    from aos.infra.changes import read
    from aos.infra.cli.context import required

    differ = asyncio.run(read(required())).diff(a, b)
    rows = [{"name": p[0], "tenant": p[1], "before": old, "after": new} for p, old, new in differ]
    emit(rows, output, DIFF_COLUMNS)


def config_rollback(
    version: Annotated[int, typer.Argument(help="The version to go back to; 0 is the start.")],
    by: ByOption = "",
    reason: ReasonOption = "",
    output: FormOption = Form.text,
) -> None:
    """Put all settings as they were at a version, in one change; that is a new version.

    Example: aos config rollback 2
    """
    from aos.infra.changes import change, going_back
    from aos.infra.cli.context import required

    settings = required()
    why = reason or f"back to version {version}"
    _told(*asyncio.run(change(settings, going_back(version), by or getpass.getuser(), why)), output)
