"""Where downloads are kept, outside the checkout: installed once, atomically, by one process at a time."""

from __future__ import annotations

import fcntl
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aos.infra.local.children import Children
from aos.infra.local.host import Host, StackError, reachable_by_others

SYSTEM_CACHE = Path("/var/cache/aos")
# A long step says something at least this often.
PROGRESS_EVERY_S = 5.0
# A sentence may quote this much of what another program said.
SAID_MAX = 400
SILENT = "it said nothing"


def cache_dir(host: Host) -> Path:
    """The cache: $AOS_CACHE, else ~/.cache/aos; for root /var/cache/aos if others cannot enter root's home.

    As root the database runs as `nobody`, who must be able to reach the unpacked programs.
    """
    chosen = host.environ.get("AOS_CACHE")
    if chosen:
        path = Path(chosen).absolute()
        if host.is_root and not reachable_by_others(path):
            raise StackError(
                f"AOS_CACHE={path} cannot be entered by the user `nobody`, whom the database runs as.",
                "Choose a folder that others may enter, or run AOS as an ordinary user.",
            )
        return path
    path = Path(host.environ.get("XDG_CACHE_HOME") or host.home() / ".cache") / "aos"
    return SYSTEM_CACHE if host.is_root and not reachable_by_others(path) else path


@contextmanager
def locked(path: Path, host: Host, what: str) -> Iterator[None]:
    """Hold the file lock `path`; say so if another process holds it. The kernel frees it with its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            host.say(f"waiting for another AOS process that installs {what} …")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def install(host: Host, name: str, what: str, build: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, made by `build(folder)` if it is not there.

    `build` fills a temporary folder which is renamed when it is whole: what is in the cache is complete.
    """
    target = cache_dir(host) / name
    if target.is_dir():
        return target
    try:
        with locked(cache_dir(host) / f".lock-{name}", host, what):
            if not target.is_dir():
                _build(target, build)
    except OSError as error:
        raise StackError(
            f"{what} could not be installed in {target.parent}: {error.strerror or error}.",
            "Make room or give access there, or set AOS_CACHE to another folder.",
        ) from None
    return target


def _build(target: Path, build: Callable[[Path], None]) -> None:
    for stale in target.parent.glob(
        f".new-{target.name}-*"
    ):  # left by a process that was killed; we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".new-{target.name}-", dir=target.parent))
    try:
        fresh.chmod(0o755)
        build(fresh)
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def folder_size(folder: Path) -> int:
    """Bytes of all files below `folder`; files that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:
            continue
    return total


@contextmanager
def progress(host: Host, what: str, folder: Path) -> Iterator[None]:
    """Say every few seconds that `what` goes on, for how long already and how much is in `folder`."""
    done = threading.Event()
    began = time.monotonic()

    def tick() -> None:
        while not done.wait(PROGRESS_EVERY_S):
            size = folder_size(folder) // 1_000_000
            host.say(f"  … {what}: {f'{size} MB, ' if size else ''}{time.monotonic() - began:.0f} s")

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def tail(log: Path, marker: str = "") -> str:
    """What a failed program said last: the last line of its log (with the marker, if any has it)."""
    said = _lines(log)
    return (next((line for line in reversed(said) if marker in line), "") or (said or [SILENT])[-1])[
        :SAID_MAX
    ]


def first(log: Path, marker: str) -> str:
    """What a failed program said: the first line with the marker (tools name the cause first), else the last."""
    said = _lines(log)
    return (next((line for line in said if marker in line), "") or (said or [SILENT])[-1])[:SAID_MAX]


def _lines(log: Path) -> list[str]:
    try:
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
    except OSError:
        return []
    return [line.strip().rstrip(".") for line in text.splitlines() if line.strip()]


def run_step(children: Children, name: str, argv: Sequence[str | Path], log: Path, **how: Any) -> int:
    """Run one program of an installation to its end, as a child that dies with us."""
    how.setdefault("timeout", 900.0)
    return children.run(name, argv, log_path=log, **how)
