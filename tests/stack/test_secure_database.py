"""The door of the secure database: who gets in and who does not, what changes at a restart, and no secret anywhere."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import psycopg
import pytest

from aos.codecs.errors import SettingsError, TransientError
from aos.codecs.settings import Settings
from aos.infra.database import Database, link, link_async
from aos.infra.local import LocalStack
from aos.infra.migrate import migrate
from aos.infra.security.certificates import ensure_ca
from aos.infra.security.passwords import as_role, read_password
from aos.infra.security.roles import OWNER, READER, WRITER
from aos.infra.security.tenants import grant
from tests.conftest import started

pytestmark = pytest.mark.stack
NO_BROKER = "none: these questions need no broker"


@pytest.fixture(scope="module")
def secure() -> Iterator[LocalStack]:
    stack = LocalStack(bootstrap=NO_BROKER, secure=True)
    try:
        started(stack)
        migrate(stack.database_url, tenants=("default", "acme"))
        yield stack
    finally:
        stack.stop()


def changed(url: str, host: str | None = None, password: str | None = None, **asked: str | None) -> str:
    """A URL with other parts; None takes one away."""
    parts = urlsplit(url)
    query = {
        name: value for name, value in (dict(parse_qsl(parts.query)) | asked).items() if value is not None
    }
    user, place = parts.netloc.rsplit("@", 1)
    user = f"{user}:{password}" if password else user
    place = f"{host}:{parts.port}" if host else place
    return parts._replace(netloc=f"{user}@{place}", query=urlencode(query)).geturl()


def refusal(url: str) -> TransientError:
    with pytest.raises(TransientError) as caught:
        link(url)
    assert caught.value.code == "AOS5011", caught.value
    return caught.value


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sslmode": "disable", "sslrootcert": None}, "no pg_hba.conf entry"),
        ({"passfile": "/nowhere"}, "no password supplied"),
        ({"passfile": "/nowhere", "password": "wrong"}, "password authentication failed"),
        ({"host": "elsewhere.example", "hostaddr": "127.0.0.1"}, "does not match host name"),
        ({"sslrootcert": "{other}"}, "certificate verify failed"),
        ({"sslrootcert": "/nowhere/ca.pem"}, "root certificate file"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("role", ["postgres", WRITER, READER])
def test_nobody_gets_in_without_tls_the_right_name_authority_and_password(
    secure: LocalStack, tmp_path: Path, role: str, given: dict[str, str | None], says: str
) -> None:
    other = str(ensure_ca(tmp_path).bundle)
    given = {name: value.replace("{other}", other) if value else value for name, value in given.items()}
    host, password = given.pop("host", None), given.pop("password", None)
    assert says in refusal(changed(as_role(secure.database_url, role), host, password, **given)).detail


def test_the_connection_is_encrypted_and_the_password_is_kept_as_a_verifier(secure: LocalStack) -> None:
    for role in (READER, WRITER, "postgres"):
        with link(as_role(secure.database_url, role)) as connection:
            assert connection.pgconn.ssl_in_use
            assert connection.pgconn.used_password
            assert connection.info.user == role
    kept = Database(secure.database_url).query(
        "SELECT rolname, rolpassword FROM pg_authid WHERE rolcanlogin"
    )[1]
    assert {name for name, _ in kept} >= {"postgres", READER, WRITER}
    assert all(password.startswith("SCRAM-SHA-256$") for _, password in kept)
    assert (
        dict(Database(secure.database_url).query("SELECT name, setting FROM pg_settings")[1])["ssl"] == "on"
    )
    rules = "SELECT type, auth_method, address FROM pg_hba_file_rules"
    assert Database(secure.database_url).query(rules)[1] == [("hostssl", "scram-sha-256", "127.0.0.1")]


def test_roles_of_ours_enter_no_other_database(secure: LocalStack) -> None:
    for role in (READER, WRITER):
        for name in ("postgres", "template1"):
            url = urlsplit(as_role(secure.database_url, role))._replace(path=f"/{name}").geturl()
            with pytest.raises(TransientError, match="permission denied for database"):
                link(url)


def test_a_database_without_roles_is_not_changed_by_a_grant(secure: LocalStack) -> None:
    """To make roles takes the tables from whoever owns them: that is `aos migrate --roles`, and nothing else."""
    with link(secure.database_url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE elsewhere")
    url = urlsplit(secure.database_url)._replace(path="/elsewhere").geturl()
    for _ in range(2):
        with pytest.raises(SettingsError, match="AOS5005") as caught:
            grant(url, "acme")
        assert "--roles" in caught.value.hint
        migrate(url)
    owner = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'aos_data'"
    assert Database(url).query(owner)[1] == [("postgres",)]
    migrate(url, tenants=["acme"])
    assert Database(url).query(owner)[1] == [(OWNER,)]


def test_a_certificate_that_expired_or_is_for_another_host_is_refused_until_it_is_replaced(
    secure: LocalStack,
) -> None:
    assert secure.ca is not None
    placed = secure.data_dir / "postgres" / "tls"
    good = {name: (placed / name).read_bytes() for name in ("cert.pem", "key.pem")}
    past = datetime.now(UTC) - timedelta(days=10)
    bad = {
        "certificate verify failed": secure.ca.issue("expired", now=past, days=1),
        "does not match": secure.ca.issue("elsewhere", ["elsewhere.example"]),
    }
    with link(secure.database_url, autocommit=True) as admin:
        try:
            for says, paths in bad.items():
                for name, path in zip(good, paths, strict=True):
                    (placed / name).write_bytes(path.read_bytes())
                admin.execute("SELECT pg_reload_conf()")
                said = _until_refused(secure.database_url)
                assert says in said
                assert said.startswith("AOS5011")
        finally:
            for name, content in good.items():
                (placed / name).write_bytes(content)
            admin.execute("SELECT pg_reload_conf()")
    _until_let_in(secure.database_url)


def _until_refused(url: str, limit_s: float = 20.0) -> str:
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        try:
            link(url).close()
        except TransientError as error:
            return f"{error.code} {error.detail}"
    pytest.fail("a bad certificate was accepted")


def _until_let_in(url: str, limit_s: float = 20.0) -> None:
    ends = time.monotonic() + limit_s
    while True:
        try:
            return link(url).close()
        except TransientError:
            assert time.monotonic() < ends


def test_open_data_becomes_secure_and_new_secrets_make_old_ones_void(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    tmp_path.chmod(0o755)
    for above in tmp_path.parents[:2]:
        above.chmod(0o755)  # the database's user has to get there
    with started(LocalStack(folder, bootstrap=NO_BROKER)) as opened:
        migrate(opened.database_url)
        with pytest.raises(SettingsError, match="AOS5010"):
            grant(opened.database_url, "acme")  # a login would keep no one out
        with link(opened.database_url) as connection:
            connection.execute(
                "INSERT INTO aos_data.alert (alert, kind, seen_at) VALUES ('planted', 'x', now())"
            )
    with started(LocalStack(folder, bootstrap=NO_BROKER, secure=True)) as closed:
        assert migrate(closed.database_url, tenants=["default"]) == ["roles", "tenant default"]
        owner = (
            "SELECT tableowner, count(*) FILTER (WHERE tablename LIKE '\\_hyper%') FROM pg_tables "
            "WHERE schemaname = 'aos_data' OR tablename LIKE '\\_hyper\\_%' GROUP BY 1"
        )
        assert Database(closed.database_url).query(owner)[1] == [(OWNER, 1)], "chunks change hands too"
        reader = Database(as_role(closed.database_url, READER))
        assert reader.query("SELECT alert FROM aos.alerts")[1] == [("planted",)]
        old = {role: read_password(folder / "security" / "sql" / role) for role in ("postgres", READER)}
    shutil.rmtree(folder / "security")
    with started(LocalStack(folder, bootstrap=NO_BROKER, secure=True)) as again:
        assert migrate(again.database_url) == []
        for role, password in old.items():
            url = changed(as_role(again.database_url, role), password=password, passfile="/nowhere")
            assert "password authentication failed" in refusal(url).detail
            assert Database(as_role(again.database_url, role)).query("SELECT 1")[1] == [(1,)]


# ── secrets ───────────────────────────────────────────────────────────────────────────────────────


async def test_planted_secrets_stand_in_no_log_process_list_statement_or_error(secure: LocalStack) -> None:
    made = grant(secure.database_url, "acme")
    secrets = {made.password, *_kept(secure.data_dir / "security" / "sql")}
    assert len(secrets) == 4
    assert all(len(each) > 40 for each in secrets)
    with psycopg.connect(made.url, password=made.password):
        doings = Database(secure.database_url).query("SELECT query FROM pg_stat_activity")[1]
        processes = _process_list()
    statements = Database(secure.database_url).query("SELECT rolname, rolconfig::text FROM pg_roles")[1]
    log = _text(secure.data_dir / "postgres" / "postgres.log")
    migrations = Database(secure.database_url).query("SELECT * FROM public.aos_migration")[1]
    seen = [str(doings), processes, str(statements), log, str(migrations)]
    seen += [
        repr(Settings(database_url=changed(made.url, password=made.password))),
        secure.database_url,
        made.url,
    ]
    seen += await _errors(made.url, made.password)
    assert not [text[:200] for text in seen for secret in secrets if secret in text]


def _kept(folder: Path) -> list[str]:
    return [read_password(path) or "" for path in folder.iterdir()]


def _text(path: Path) -> str:
    return path.read_text(errors="replace")


def _process_list() -> str:
    """Command lines of all processes that we may see; those that ended meanwhile have none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(_text(path))
    assert any("postgres" in each for each in found)
    return "\n".join(found)


async def _errors(url: str, password: str) -> list[str]:
    """What is said of URLs that hold a password and go wrong in every way we know."""
    good = changed(url, password=password)
    bad = [
        good.replace("@", "@@"), good.replace("postgresql://", "postgres:/"), good + "&bogus=1",
        good.replace("%", "%Z"),
        changed(url, password=password, host="[::1"), changed(url, password=password, sslmode="disable"),
        changed(url, password=f"{password}x"), changed(url, password=password, host="127.0.0.1:1"),
        f"host=127.0.0.1 password={password} bogus=1", f"host=127.0.0.1 password='{password}",
    ]  # fmt: skip
    said = []
    for each in bad:
        for tried in (link, lambda one: link_async(one, "test")):
            with pytest.raises(Exception) as caught:  # noqa: PT011 (whatever it is, it must not say the password)
                await _maybe(tried(each))
            said.append(f"{caught.value} {caught.value!r} {getattr(caught.value, 'detail', '')}")
    return said


async def _maybe(found: object) -> None:
    if hasattr(found, "__await__"):
        found = await found
    pytest.fail(f"{found} is a connection")


NOBODY = "postgresql://u:{}@127.0.0.1:1/aos"
COMMANDS = (
    "doctor",
    "sql SELECT",
    "status",
    "health",
    "migrate",
    "tenants list",
    "config list",
    "tasks list",
)


@pytest.mark.parametrize(
    ("url", "command"),
    [(NOBODY, command) for command in COMMANDS]
    + [("postgres:/u:{}@127.0.0.1/aos", command) for command in ("doctor", "sql SELECT")]
    + [("postgresql://u:{}@far.example/aos", command) for command in ("doctor", "sql SELECT")],
)
def test_no_command_shows_the_password_of_its_url(url: str, command: str, tmp_path: Path) -> None:
    canary = "correct-horse-battery-staple"
    environ = {"AOS_DATABASE_URL": url.format(canary), "AOS_BOOTSTRAP": "127.0.0.1:1", "AOS_SECRET": canary}
    environ |= {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "AOS_RUN_FILE": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-m", "aos", *command.split()], capture_output=True, text=True, env=environ, cwd=tmp_path,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stdout + done.stderr
    assert canary not in done.stdout + done.stderr
