"""Commands about the tenants' logins in SQL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aos.infra.cli.output import Form, FormOption, emit, emit_one, note


def add(app: typer.Typer) -> None:
    """Put this module's commands into the app."""
    group = typer.Typer(help="Logins with which tenants see their own rows in SQL.", no_args_is_help=True)
    group.command("list")(tenants_list)
    group.command("grant")(tenants_grant)
    group.command("revoke")(tenants_revoke)
    app.add_typer(group, name="tenants")


def tenants_list(output: FormOption = Form.text) -> None:
    """List the tenants who have views of their own in SQL, and their logins.

    Example: aos tenants list
    """
    from aos.infra.cli.context import required
    from aos.infra.security.tenants import listed

    emit(listed(required().database_url), output)


def tenants_grant(
    tenant: Annotated[str, typer.Argument(help="Name of the tenant.")],
    file: Annotated[
        Path | None, typer.Option(help="Write the password there, for you alone, instead of printing it.")
    ] = None,
    output: FormOption = Form.text,
) -> None:
    """Give a tenant a login in SQL that sees its own rows and nothing else; again: a new password.

    The password is shown this once and kept nowhere.

    Example: aos tenants grant acme --file acme.pgpass
    """
    from aos.infra.cli.context import required
    from aos.infra.security.tenants import grant

    made = grant(required().database_url, tenant, file)
    row = {"tenant": made.tenant, "login": made.role, "url": made.url}
    emit_one(row | ({"password": made.password} if made.password else {}), output)
    if made.password:
        note("keep the password: it is shown this once (PGPASSWORD, or a passfile, gives it to clients)")


def tenants_revoke(tenant: Annotated[str, typer.Argument(help="Name of the tenant.")]) -> None:
    """Take a tenant's login away and end its sessions; its rows stay.

    Example: aos tenants revoke acme
    """
    from aos.infra.cli.context import required
    from aos.infra.security.tenants import revoke

    revoke(required().database_url, tenant)
    note(f"{tenant} can log in no more")
