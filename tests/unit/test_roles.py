"""Roles, passwords and addresses of the database as they are written down; what the server makes of them is in
tests/stack/test_secure_sql.py."""

from __future__ import annotations

import base64
import hmac
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from aos.codecs.errors import SettingsError
from aos.codecs.settings import Settings
from aos.infra.database import check_url
from aos.infra.security.passwords import (
    as_role,
    is_verifier,
    kept_password,
    new_password,
    read_password,
    secure_url,
    shown,
    verifier,
    write_passfile,
)
from aos.infra.security.roles import (
    OWNED,
    TENANT_VIEWS,
    drop_tenant_sql,
    grants_sql,
    login_sql,
    no_login_sql,
    nothing_to_all_sql,
    owned_sql,
    roles_sql,
    rows_schema,
    tenant_role,
    tenant_sql,
    writer_rights,
)
from aos.infra.settings import environment, load, origins
from aos.infra.surface import VIEWS
from aos.streams.store_tables import HYPERTABLES, TABLES

SECRET = "correct-horse-battery-staple"


def text(statements: list[psycopg.sql.SQL | psycopg.sql.Composed]) -> str:
    return ";\n".join(each.as_string(None) for each in statements)


# ── roles ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_writer_may_change_no_row_of_a_log_and_empty_no_table() -> None:
    rights = writer_rights()
    for table in HYPERTABLES:
        assert rights[table.name] == ("SELECT", "INSERT"), table.name
    assert all("TRUNCATE" not in each and "REFERENCES" not in each for each in rights.values())
    assert set(TABLES) < set(rights)


def test_tables_of_one_tenant_are_told_from_those_of_all() -> None:
    assert {"request", "decision", "attempt", "result", "note", "payload", "dead_letter"} < set(OWNED)
    assert not {"agent", "strategy", "alert", "setting", "place", "kept", "unwritable", "result_once"} & set(
        OWNED
    )
    assert not {"agents", "strategies", "alerts", "settings", "places", "unwritable"} & set(TENANT_VIEWS)
    assert {"tasks", "steps", "attempts", "decisions", "skill_over_time", "dead_letters"} < set(TENANT_VIEWS)


def test_every_view_of_a_tenant_is_a_barrier_and_reads_only_its_own_rows() -> None:
    made = [line for line in text(tenant_sql("acme")).split(";\n") if line.startswith("CREATE VIEW")]
    assert len(made) == len(OWNED) + len(TENANT_VIEWS)
    assert all("WITH (security_barrier) AS" in each for each in made)
    below = [each for each in made if each.startswith(f'CREATE VIEW "{rows_schema("acme")}"')]
    above = [each for each in made if each.startswith(f'CREATE VIEW "{tenant_role("acme")}"')]
    assert all("WHERE tenant = 'acme'" in each or "domain = 'acme'" in each for each in below)
    assert not any("aos_data." in each for each in above)
    assert {each.split(".")[1].split('"')[1] for each in above} == set(TENANT_VIEWS) <= set(VIEWS)


def test_no_statement_gives_anything_to_public() -> None:
    all_of_them = [*roles_sql(), *owned_sql(), *nothing_to_all_sql(), *grants_sql(), *tenant_sql("acme")]
    all_of_them += [*drop_tenant_sql("acme"), *login_sql("acme", "v"), *no_login_sql("acme")]
    assert "TO PUBLIC" not in text(all_of_them).upper()


@pytest.mark.parametrize("name", ["", "a b", 'a"b', "a'b", "a%b", "a;b", "ä", "a" * 53, "a/b", "a\nb"])
def test_what_cannot_be_a_tenants_name_is_refused_before_it_is_in_a_statement(name: str) -> None:
    for make in (tenant_sql, drop_tenant_sql):
        with pytest.raises(SettingsError, match="AOS5002"):
            make(name)


@pytest.mark.parametrize("name", ["a", "acme", "A.b_c-9", "a" * 52])
def test_names_of_roles_are_never_cut_and_never_shared(name: str) -> None:
    assert len(tenant_role(name)) <= 63
    assert tenant_role(name) != tenant_role(name[:-1] + "z")


# ── passwords ─────────────────────────────────────────────────────────────────────────────────────


def test_a_verifier_is_that_of_rfc_7677() -> None:
    """The RFC's example: its server proves itself with the key that the verifier ends in."""
    found = verifier("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
    assert found.startswith("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$")
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    said = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}"
    proof = hmac.digest(base64.b64decode(found.rpartition(":")[2]), said.encode(), "sha256")
    assert base64.b64encode(proof) == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    assert is_verifier(found, "pencil")
    assert not is_verifier(found, "pencils")


def test_a_verifier_says_nothing_of_its_password_and_two_differ() -> None:
    assert verifier(SECRET) != verifier(SECRET)
    assert SECRET not in verifier(SECRET)
    assert len({new_password() for _ in range(100)}) == 100


def test_a_kept_password_is_its_owners_alone_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "sql" / "aos_writer"
    made = kept_password(path, "127.0.0.1", "aos_writer")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    assert kept_password(path, "127.0.0.1", "aos_writer") == made == read_password(path)
    assert path.read_text() == f"127.0.0.1:*:*:aos_writer:{made}\n", "libpq's own form"
    assert read_password(tmp_path / "none") is None


def test_a_url_of_the_local_stack_becomes_another_roles_and_any_other_stays(tmp_path: Path) -> None:
    for role in ("postgres", "aos_writer"):
        write_passfile(tmp_path / role, "127.0.0.1", role, SECRET)
    url = secure_url("127.0.0.1", 5, "aos", "postgres", tmp_path / "ca.pem", tmp_path / "postgres")
    other = as_role(url, "aos_writer")
    asked = conninfo_to_dict(other)
    assert (asked["user"], asked["passfile"], asked["sslmode"]) == (
        "aos_writer",
        str(tmp_path / "aos_writer"),
        "verify-full",
    )
    assert as_role(other, "postgres") == url
    assert SECRET not in url + other
    for foreign in (
        f"postgresql://me:{SECRET}@db.example/aos",
        "host=db.example user=me",
        "",
        as_role(url, "nobody"),
    ):
        assert as_role(foreign, "aos_reader") == foreign


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        (f"postgresql://me:{SECRET}@db.example:5/aos?sslmode=allow", "postgresql://me:***@db.example:5/aos?sslmode=allow"),
        (f"postgresql://db.example/aos?password={SECRET}", "postgresql://db.example/aos?password=***"),
        (f"postgresql://db.example/aos?sslpassword={SECRET}", "postgresql://db.example/aos?sslpassword=***"),
        (f"host=db.example password={SECRET}", "***"), (f"postgres:/me:{SECRET}@db.example", "***"), ("", ""),
        (f"postgresql://me:{SECRET}@[::1/aos", "***"), ("postgresql://me@h:5/aos", "postgresql://me@h:5/aos"),
        (f"postgresql://me:a@b:{SECRET}@h/aos", "postgresql://me:***@h/aos"),
    ],
)  # fmt: skip
def test_a_url_is_shown_without_its_password(url: str, seen: str) -> None:
    assert shown(url) == seen


# ── addresses ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["", "?sslmode=disable", "?sslmode=allow", "?sslmode=prefer"])
@pytest.mark.parametrize("host", ["db.example", "10.0.0.1", "127.0.0.1,db.example", "[2001:db8::1]"])
def test_sql_does_not_go_in_the_clear_to_another_machine_unless_somebody_said_so(
    host: str, mode: str
) -> None:
    url = f"postgresql://me:{SECRET}@{host}/aos{mode}"
    with pytest.raises(SettingsError, match="AOS5009") as caught:
        load({}, {"AOS_DATABASE_URL": url})
    assert SECRET not in f"{caught.value} {caught.value.hint}"
    assert load({}, {"AOS_DATABASE_URL": url, "AOS_ALLOW_PLAINTEXT": "true"}).database_url == url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@db.example/aos?sslmode=verify-full", "postgresql://me@db.example/aos?sslmode=require",
        "postgresql://me@127.0.0.1/aos", "postgresql://me@localhost:5/aos", "postgresql://me@[::1]/aos",
        "postgresql:///aos?host=/run/postgresql", "postgresql:///aos",
    ],
)  # fmt: skip
def test_sql_may_go_in_the_clear_where_nobody_listens_and_encrypted_anywhere(url: str) -> None:
    check_url(url)


def test_a_hosts_address_counts_whatever_it_is_called() -> None:
    with pytest.raises(SettingsError, match="AOS5009"):
        check_url("postgresql://me@localhost/aos?hostaddr=10.0.0.1")


@pytest.mark.parametrize(
    "url", [f"postgres:/me:{SECRET}@h/aos", f"postgresql://me:{SECRET}@h/aos?bogus=1", f"password='{SECRET}"]
)
def test_what_is_no_url_is_told_without_saying_it(url: str) -> None:
    with pytest.raises(SettingsError, match="AOS5002") as caught:
        load({}, {"AOS_DATABASE_URL": url})
    assert SECRET not in f"{caught.value} {caught.value.hint} {caught.value!r}"


def test_settings_show_no_secret_and_children_still_get_it() -> None:
    url = f"postgresql://me:{SECRET}@localhost/aos"
    settings = Settings(database_url=url, secret=SECRET)
    assert SECRET not in f"{settings} {settings!r}"
    assert environment(settings)["AOS_DATABASE_URL"] == url
    names = {each.name for each in origins({}, {"AOS_DATABASE_URL": url}) if each.origin == "environment"}
    assert names == {"database_url"}
