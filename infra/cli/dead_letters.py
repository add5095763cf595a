"""Commands about dead letters: what could not be read, why, and how it is sent back once the cause is gone."""

from __future__ import annotations

import asyncio
import datetime
from typing import Annotated, Any

import typer

from aos.infra.cli.output import Form, FormOption, emit, emit_one, note

COLUMNS = ("place", "tenant", "processor", "code", "appended_at", "body_size", "message")
SENT_COLUMNS = ("place", "rows", "sent_as", "refused")

ProcessorOption = Annotated[str | None, typer.Option(help="Only those that this processor refused.")]
CodeOption = Annotated[str | None, typer.Option(help="Only those with this error code.")]
TopicOption = Annotated[str | None, typer.Option(help="Only those read from this topic (without prefix).")]
TenantOption = Annotated[str | None, typer.Option(help="Only those of this tenant.")]
SinceOption = Annotated[
    str | None, typer.Option(help="Only messages appended since: 30m, 2h, 1d ago, or a time in ISO 8601.")
]


def add(app: typer.Typer) -> None:
    """Put this module's commands into the app."""
    group = typer.Typer(help="Messages that could not be read, and sending them back.", no_args_is_help=True)
    group.command("list")(letters_list)
    group.command("show")(letters_show)
    group.command("redrive")(letters_redrive)
    app.add_typer(group, name="dead-letters")


def letters_list(
    processor: ProcessorOption = None,
    code: CodeOption = None,
    topic: TopicOption = None,
    tenant: TenantOption = None,
    since: SinceOption = None,
    output: FormOption = Form.text,
) -> None:
    """List the dead letters on their topic, oldest first (older ones: SQL, aos.dead_letters).

    Example: aos dead-letters list --code AOS1007 --since 2h -o json
    """
    from aos.infra.cli.context import required
    from aos.infra.letters import chosen, read

    wanted = _wanted(processor, code, topic, tenant, since)
    found = chosen(asyncio.run(read(required())), wanted)
    names = [name for name in (found[0] if found else ()) if name not in ("body", "headers")]
    emit([{name: letter[name] for name in names} for letter in found], output, COLUMNS)


def letters_show(
    place: Annotated[str, typer.Argument(help="<topic>/<partition>/<offset>[:<row>], as the list has it.")],
    output: FormOption = Form.text,
) -> None:
    """Show a letter whole: headers, bytes, and whether it can be sent back.

    Example: aos dead-letters show aos.requests/0/17
    """
    from aos.infra.cli.context import required
    from aos.infra.letters import headers_of, read, redrives, sent_before

    settings = required()
    letters = asyncio.run(read(settings))
    found = _at(letters, [place])[:1]
    (back,) = redrives(letters, found, asyncio.run(sent_before(settings, found)))
    shown = {**found[0], "headers": headers_of(found[0]), "redrive": back.refused or "yes"}
    emit_one(shown, output)


def letters_redrive(
    places: Annotated[
        list[str] | None, typer.Argument(help="<topic>/<partition>/<offset>[:<row>], as the list has it.")
    ] = None,
    processor: ProcessorOption = None,
    code: CodeOption = None,
    topic: TopicOption = None,
    tenant: TenantOption = None,
    since: SinceOption = None,
    again: Annotated[bool, typer.Option(help="Also what was sent back before.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be done.")] = False,
    output: FormOption = Form.text,
) -> None:
    """Send letters back to where they were read, as the same requests; exit code 1 if one cannot be.

    Name them, or choose them by a filter. Of a message with good rows only the bad ones are sent.

    Example: aos dead-letters redrive --topic aos.requests.acme --code AOS1013
    """
    from aos.infra.cli.context import required
    from aos.infra.letters import chosen, read, redrives, send, sent_before

    wanted = _wanted(processor, code, topic, tenant, since)
    if not places and not any(wanted.values()):
        note("aos: name letters by their place, or choose them by a filter")
        raise typer.Exit(2)
    settings = required()
    letters = asyncio.run(read(settings))
    found = chosen(_at(letters, places) if places else letters, wanted)
    before = {} if again else asyncio.run(sent_before(settings, found))
    planned = redrives(letters, found, before)
    good = [message for message in planned if not message.refused]
    offsets = [None] * len(good) if dry_run else asyncio.run(send(settings, good))
    sent = dict(zip([message.place for message in good], offsets, strict=True))
    rows = [
        {
            "place": each.place, "rows": list(each.rows) or None, "refused": each.refused or None,
            "sent_as": _sent_as(each.origin, sent.get(each.place)),
        }
        for each in planned
    ]  # fmt: skip
    emit(rows, output, SENT_COLUMNS)
    if len(good) < len(planned):
        raise typer.Exit(1)


def _sent_as(origin: Any, offset: int | None) -> str | None:
    return None if offset is None else f"{origin.topic}/{origin.partition}/{offset}"


def _wanted(
    processor: str | None, code: str | None, topic: str | None, tenant: str | None, since: str | None
) -> dict[str, Any]:
    from aos.infra.letters import since as time_of

    begin = None if since is None else time_of(since, datetime.datetime.now(datetime.UTC))
    return {"processor": processor, "code": code, "topic": topic, "tenant": tenant, "since": begin}


def _at(letters: list[dict[str, Any]], places: list[str]) -> list[dict[str, Any]]:
    from aos.infra.letters import at_places

    try:
        return at_places(letters, places)
    except LookupError as error:
        note(f"aos: no dead letter at {error.args[0]}; `aos dead-letters list` has them")
        raise typer.Exit(1) from error
