"""The local database: PostgreSQL with TimescaleDB on loopback, as an unprivileged user.

Secure (with a certificate authority): TLS and scram-sha-256 for everybody, the superuser included, and nothing else;
passwords of the roles are made at first start and kept beside the data. Otherwise whoever reaches the port may do all.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from aos.infra.local.cache import run_step, tail
from aos.infra.local.children import Children
from aos.infra.local.debian import HINT, install_timescaledb, installed_postgres, runs
from aos.infra.local.host import (
    LOOPBACK,
    Host,
    StackError,
    User,
    check_disk,
    check_port,
    free_port,
    reachable_by_others,
)
from aos.infra.security.certificates import Ca
from aos.infra.security.passwords import is_verifier, kept_password, secure_url, verifier
from aos.infra.security.roles import READER, WRITER, roles_sql

DATABASE = "aos"
ROLE = "postgres"
DATA_BYTES = 512 << 20
START_LIMIT_S = 60.0
# For ingest on two cores. fsync and synchronous_commit stay on: what SQL shows has happened.
# Shared memory as files in the data folder: containers often have 64 MB of /dev/shm, and nothing is left.
# Statistics of a quarter of the usual sample: while rows pour in, ANALYZE of all tables every minute took 1 s of CPU.
SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
shared_preload_libraries = 'timescaledb'
timescaledb.telemetry_level = off
timescaledb.max_background_workers = 4
max_worker_processes = 12
max_parallel_workers = 2
max_connections = 60
shared_buffers = 256MB
dynamic_shared_memory_type = mmap
max_wal_size = 2GB
checkpoint_timeout = 15min
wal_compression = on
work_mem = 16MB
default_statistics_target = 25
fsync = on
synchronous_commit = on
jit = off
logging_collector = off
log_min_messages = warning
"""
TRUSTING = "host all all 127.0.0.1/32 trust\n"
# One line, so that there is no other way in: no socket, no address but loopback, nothing without TLS and a password.
STRICT = "hostssl all all 127.0.0.1/32 scram-sha-256\n"
SECURE_SETTINGS = """
ssl = on
ssl_cert_file = '{cert}'
ssl_key_file = '{key}'
ssl_min_protocol_version = 'TLSv1.2'
password_encryption = 'scram-sha-256'
"""
PASSWORD_LIMIT_S = 60.0


class Database:
    """One PostgreSQL server and its data folder."""

    name = "postgres"

    def __init__(
        self, host: Host, children: Children, folder: Path, port: int | None = None, ca: Ca | None = None
    ) -> None:
        """`ca`: be secure, with a certificate of this authority."""
        self.host = host
        self.ca = ca
        self.children = children
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "postgres.log"
        self.port = port or free_port()
        self._given_port = port is not None
        self._programs: Path | None = None
        self._user: User | None = None
        # C.UTF-8 is not on every machine, C is; the database itself is UTF-8 with C collation
        self._environ = {"PATH": host.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}

    @property
    def url(self) -> str:
        return self.url_of(DATABASE)

    def url_of(self, database: str, role: str = ROLE) -> str:
        """Without security there is one role, who may do all."""
        if self.ca is None:
            return f"postgresql://{ROLE}@{LOOPBACK}:{self.port}/{database}"
        return secure_url(LOOPBACK, self.port, database, role, self.ca.bundle, self._passfile(role, self.ca))

    @staticmethod
    def _passfile(role: str, ca: Ca) -> Path:
        return ca.folder / "sql" / role

    def prepare(self) -> None:
        """Programs, port, and an initialised data folder."""
        self._user = self.host.database_user()
        self._programs = self._find_programs()
        if self._given_port:
            check_port(self.port, "the database")
        check_disk(self.host, self.folder, DATA_BYTES, "the database's data")
        self._make_folder()
        if not (self.folder / "initialised").exists():
            self._initialise()
        settings = SETTINGS + f"port = {self.port}\n"
        (self.data / "aos.conf").write_text(settings)
        if self.ca is not None:
            self._know_superuser(self.ca)
            (self.data / "aos.conf").write_text(settings + self._certified(self.ca))
        (self.data / "pg_hba.conf").write_text(TRUSTING if self.ca is None else STRICT)

    def _certified(self, ca: Ca) -> str:
        """Certificate and key in a folder of the server's user, and the settings that name them."""
        folder = self.folder / "tls"
        folder.mkdir(exist_ok=True, mode=0o700)
        placed = {}
        for name, path in zip(("cert", "key"), ca.issue("postgres"), strict=True):
            placed[name] = folder / f"{name}.pem"
            placed[name].unlink(missing_ok=True)
            descriptor = os.open(placed[name], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(path.read_bytes())
        for path in (folder, *placed.values()):
            if self._user is not None:
                os.chown(path, self._user.uid, self._user.gid)
        return SECURE_SETTINGS.format(**placed)

    def _know_superuser(self, ca: Ca) -> None:
        """Give the superuser the password in its file; made anew, it is told to the data in single-user mode, where
        nobody else can be: a folder that was used without security may so become secure."""
        told = self.folder / "superuser"
        password = kept_password(self._passfile(ROLE, ca), LOOPBACK, ROLE)
        if told.exists() and is_verifier(told.read_text(), password):
            return
        assert self._programs is not None
        known = verifier(password)
        change = sql.SQL("ALTER ROLE {} PASSWORD {}\n").format(sql.Identifier(ROLE), sql.Literal(known))
        argv: list[str | Path] = [self._programs / "postgres", "--single", "-D", self.data]
        argv += ["-c", "shared_preload_libraries=", "-c", "log_min_messages=error", "postgres"]
        user = self._user
        with self.log.open("ab") as log:
            done = subprocess.run(
                argv, input=change.as_string(None).encode(), stdout=subprocess.DEVNULL, stderr=log, env=self._environ,
                cwd=self.folder, timeout=PASSWORD_LIMIT_S, check=False, user=user.uid if user else None,
                group=user.gid if user else None, extra_groups=[] if user else None,
            )  # fmt: skip
        if done.returncode != 0:
            raise StackError(f"The database's superuser got no password: {tail(self.log, 'FATAL')}.",
                             f"See {self.log}.")  # fmt: skip
        told.touch(mode=0o600)
        told.write_text(known)

    def _find_programs(self) -> Path:
        programs = installed_postgres(self.host) or install_timescaledb(self.host, self.children)
        problem = runs(programs / "postgres")
        if problem:
            raise StackError(f"PostgreSQL in {programs} does not run on this machine: {problem}.", HINT)
        return programs

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._user is None:
            return
        if not reachable_by_others(self.folder.parent):
            raise StackError(
                f"The data folder {self.folder.parent} cannot be entered by the user `{self._user.name}`,"
                " whom the database runs as because PostgreSQL refuses root.",
                "Choose a folder that others may enter, or run AOS as an ordinary user.",
            )
        os.chown(self.folder, self._user.uid, self._user.gid)

    def _initialise(self) -> None:
        assert self._programs is not None
        shutil.rmtree(self.data, ignore_errors=True)  # an initialisation that was killed half-way
        (self.folder / "superuser").unlink(missing_ok=True)
        argv: list[str | Path] = [self._programs / "initdb", "-D", self.data, "-A", "trust", "-U", ROLE]
        argv += ["--no-locale", "-E", "UTF8", "--no-sync", "--no-instructions"]
        how = {"env": self._environ, "user": self._user, "cwd": self.folder, "timeout": 120.0}
        if run_step(self.children, "initdb", argv, self.log, **how) != 0:
            raise StackError(
                f"The database's data folder could not be made: {tail(self.log, 'error')}.",
                f"See {self.log}.",
            )
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write("include 'aos.conf'\n")
        (self.folder / "initialised").touch()

    def start(self) -> None:
        """Start the server and wait until the database `aos` takes connections."""
        assert self._programs is not None
        self.children.spawn(
            self.name,
            [self._programs / "postgres", "-D", self.data],
            env=self._environ,
            user=self._user,
            cwd=self.folder,
            log_path=self.log,
            stop_signal=signal.SIGINT,  # do not wait for clients
            last_signal=signal.SIGQUIT,  # at once, but free the shared memory
        )
        deadline = time.monotonic() + START_LIMIT_S
        while not self._ready():
            code = self.children.wait(self.name, 0.05)
            if code is not None:
                raise StackError(
                    f"The database ended with code {code}: {tail(self.log, 'FATAL')}.", f"See {self.log}."
                )
            if time.monotonic() > deadline:
                raise StackError(
                    f"The database did not answer within {START_LIMIT_S:.0f} s.",
                    f"The machine may be overloaded; see {self.log}.",
                )

    def _ready(self) -> bool:
        try:
            with psycopg.connect(self.url_of("postgres"), connect_timeout=5, autocommit=True) as link:
                names = link.execute("SELECT datname FROM pg_database").fetchall()
                if (DATABASE,) not in names:
                    link.execute(f"CREATE DATABASE {DATABASE}")
            with psycopg.connect(self.url, connect_timeout=5, autocommit=True) as link:
                link.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
                if self.ca is not None:
                    self._make_roles(link, self.ca)
        except psycopg.OperationalError:
            return False
        return True

    def _make_roles(self, link: psycopg.Connection[Any], ca: Ca) -> None:
        """Writer and reader with the passwords in their files, and no other database that anybody may enter. What
        the roles may do is the migration's."""
        with link.transaction():
            for statement in roles_sql():
                link.execute(statement)
            for role in (WRITER, READER):
                known = verifier(kept_password(self._passfile(role, ca), LOOPBACK, role))
                change = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(known))
                link.execute(change)
            link.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")

    def kill(self) -> None:
        """SIGKILL to the server and all its backends, as a lost machine would do it."""
        self.children.kill(self.name)

    def stop(self, timeout: float) -> None:
        self.children.stop(self.name, timeout)
