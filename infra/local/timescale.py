"""The local database: PostgreSQL with TimescaleDB on loopback, as an unprivileged user."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import psycopg

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


class Database:
    """One PostgreSQL server and its data folder."""

    name = "postgres"

    def __init__(self, host: Host, children: Children, folder: Path, port: int | None = None) -> None:
        self.host = host
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

    def url_of(self, database: str) -> str:
        return f"postgresql://{ROLE}@{LOOPBACK}:{self.port}/{database}"

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
        (self.data / "aos.conf").write_text(SETTINGS + f"port = {self.port}\n")

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
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to the server and all its backends, as a lost machine would do it."""
        self.children.kill(self.name)

    def stop(self, timeout: float) -> None:
        self.children.stop(self.name, timeout)
