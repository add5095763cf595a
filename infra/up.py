"""The whole of AOS on this machine: local stack, topics, database schema, three workers. Ends with its owner."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from aos.agents.sdk.connection import run_file
from aos.codecs.errors import StackError
from aos.codecs.settings import Settings
from aos.infra.local.stack import LocalStack
from aos.infra.security.passwords import as_role
from aos.infra.security.roles import READER, WRITER
from aos.infra.settings import environment
from aos.streams.topology import GROUPS

READY_S = 60.0
# how to speak to the broker, for other commands of this user; passwords stay in their folder
SHARED = ("security_protocol", "sasl_mechanism", "kafka_username", "kafka_users_dir", "kafka_ca_file")


class Up:
    """``with Up(settings) as up:`` everything runs; `up.settings` has the addresses.

    Given servers (`bootstrap`, `database_url` in the settings) are used as they are. `groups`: processors by worker.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        groups: dict[str, tuple[str, ...]] | None = None,
        announce: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`announce`: write the run file, so that other commands find this stack."""
        self._groups = GROUPS if groups is None else groups
        self._announce = announce
        self._say = say
        self.settings = settings
        self.stack = LocalStack(
            Path(settings.data_dir) if settings.data_dir else None,
            bootstrap=settings.bootstrap or None,
            database_url=settings.database_url or None,
            secure=settings.secure,
        )

    def __enter__(self) -> Up:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        from aos.infra.migrate import migrate
        from aos.infra.runtime import make_topics
        from aos.infra.security.local import secure_broker

        self.stack.start()
        self.settings = dataclasses.replace(
            self.settings,
            bootstrap=self.stack.bootstrap,
            database_url=self.stack.database_url,
            secret=self.settings.secret or _kept_secret(self.stack.data_dir),
        )
        self._say("broker and database are up")
        if self.stack.broker is not None and self.stack.ca is not None:
            self.settings = secure_broker(self.settings, self.stack.broker, self.stack.ca)
            self._say("users and rights are there")
        else:
            make_topics(self.settings)
        guarded = self.stack.ca is not None and self.stack.database is not None
        migrate(self.settings.database_url, tenants=self.settings.tenants if guarded else None)
        if guarded:  # from here on everybody asks as who may only look, but who stores
            url = as_role(self.settings.database_url, READER)
            self.settings = dataclasses.replace(self.settings, database_url=url)
        self._say("topics and tables are there")
        for group in self._groups:
            self.start_worker(group)
        self.wait_ready()
        if self._announce:
            self._write_run_file()

    def start_worker(self, group: str, ordinal: int = 0) -> int:
        """Start (again) the worker of a group; it is restarted when it dies. Returns its pid."""
        name = worker_name(group, ordinal)
        self.status_file(group, ordinal).unlink(missing_ok=True)
        argv = [sys.executable, "-m", "aos", "worker", "--ordinal", str(ordinal)]
        argv += [
            "--processors",
            ",".join(self._groups[group]),
            "--status-file",
            str(self.status_file(group, ordinal)),
        ]
        return self.stack.children.spawn(
            name,
            argv,
            env={**outside(), **environment(self._settings_of(group))},
            log_path=self.log_file(group, ordinal),
            restart=True,
        )

    def _settings_of(self, group: str) -> Settings:
        """A worker's settings: who stores may write to SQL; in a secure stack the others do not even know it."""
        if self.stack.ca is None:
            return self.settings
        url = as_role(self.settings.database_url, WRITER) if "store" in self._groups[group] else ""
        return dataclasses.replace(self.settings, database_url=url)

    def log_file(self, group: str, ordinal: int = 0) -> Path:
        return self.stack.data_dir / f"{worker_name(group, ordinal)}.log"

    def status_file(self, group: str, ordinal: int = 0) -> Path:
        return self.stack.data_dir / f"{worker_name(group, ordinal)}.json"

    def wait_ready(self, limit_s: float = READY_S) -> None:
        """Until every worker has restored its partitions; StackError with the end of its log otherwise."""
        ends = time.monotonic() + limit_s
        for group in self._groups:
            while not self.ready(group):
                if self.stack.children.restarts(worker_name(group, 0)) > 2 or time.monotonic() > ends:
                    raise StackError(f"worker {group} does not start: {_tail(self.log_file(group))}")
                time.sleep(0.05)

    def ready(self, group: str, ordinal: int = 0, since: float = 0.0) -> bool:
        """Whether the worker said, after `since` (time.time()), that it is ready."""
        try:
            said = json.loads(self.status_file(group, ordinal).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        return bool(said["ready"]) and said["at"] > since

    def kill_worker(self, group: str, ordinal: int = 0) -> None:
        """SIGKILL; it comes back by itself."""
        self.stack.children.kill(worker_name(group, ordinal))

    def stop(self) -> None:
        """Stop services and workers, then broker and database; the run file goes first."""
        if self._announce:
            run_file().unlink(missing_ok=True)
        self.stack.stop()

    def _write_run_file(self) -> None:
        path = run_file()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        addresses = {
            "pid": os.getpid(),
            "bootstrap": self.settings.bootstrap,
            "database_url": self.settings.database_url,
            "prefix": self.settings.prefix,
            "partitions": self.settings.partitions,
            "data_dir": str(self.stack.data_dir),
        }
        addresses |= {name: getattr(self.settings, name) for name in SHARED}
        path.touch(mode=0o600)
        path.chmod(0o600)  # there may be a password in the address of the database
        path.write_text(json.dumps(addresses))


def worker_name(group: str, ordinal: int) -> str:
    """Name of a worker's process and of its files."""
    return f"worker-{group}-{ordinal}"


def outside() -> dict[str, str]:
    """The environment without our own settings: those come from the Settings object alone."""
    keep = ("AOS_CACHE", "AOS_FAULT")
    return {name: value for name, value in os.environ.items() if not name.startswith("AOS_") or name in keep}


def _kept_secret(folder: Path) -> str:
    """The key of the tokens: made at first start, readable by the owner alone."""
    path = folder / "secret"
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path.read_text()


def _tail(path: Path) -> str:
    try:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return "it wrote no log"
    return lines[-1][:400] if lines else "its log is empty"
