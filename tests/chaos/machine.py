"""What faults of resources need of this machine, and whether it can: small disks, CPU shares, limits, false clocks.

Each means says in one sentence why it is missing, or None. Nothing here touches what it did not make: mounts and
control groups are its own, processes are the stand's.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from aos.infra.local.cache import cache_dir
from aos.infra.local.host import Host

CGROUP_V1_CPU = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 100_000
FAKETIME = "libfaketime.so.1"
TICKS = os.sysconf("SC_CLK_TCK")


# ── small disks ───────────────────────────────────────────────────────────────────────────────────


@lru_cache
def no_tmpfs() -> str | None:
    """Why a tmpfs cannot be mounted here."""
    if shutil.which("mount") is None:
        return "there is no mount"
    with tempfile.TemporaryDirectory(prefix="aos-chaos-") as folder:
        said = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "aos-chaos", folder], capture_output=True, text=True
        )
        if said.returncode:
            return f"tmpfs cannot be mounted: {said.stderr.strip()[:200]}"
        subprocess.run(["umount", folder], check=True)
    return None


class SmallDisk:
    """A folder on a tmpfs of its own that can be filled to the last byte. Nobody may use the folder while it moves."""

    def __init__(self, folder: Path, spare_bytes: int) -> None:
        """`spare_bytes`: what is free beside what the folder holds."""
        self.folder, self._spare = folder, spare_bytes
        self._balloon = folder / "balloon"
        self._mounted = False

    def move_in(self) -> None:
        """Put the folder onto the small disk."""
        there = self.folder.stat()
        aside = self.folder.with_name(self.folder.name + ".aside")
        size = used_bytes(self.folder) + self._spare
        self.folder.rename(aside)
        self.folder.mkdir()
        how = f"size={size},uid={there.st_uid},gid={there.st_gid},mode={there.st_mode & 0o7777:o}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", how, "aos-chaos", str(self.folder)], check=True)
        self._mounted = True
        _copy(aside, self.folder)
        shutil.rmtree(aside)

    def fill(self) -> int:
        """Leave not a page; how many bytes the balloon took. Others may write at the same time."""
        took = 0
        balloon = os.open(self._balloon, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):  # the one that says that it is full
                    while True:
                        took += os.write(balloon, bytes(size))
        finally:
            os.close(balloon)
        return took

    def free(self) -> None:
        """Give the space back."""
        self._balloon.unlink(missing_ok=True)

    def move_out(self) -> None:
        """Put the folder back onto the disk it was on; nothing when it never moved."""
        if not self._mounted:
            return
        self.free()
        there = self.folder.stat()
        fresh = self.folder.with_name(self.folder.name + ".back")
        fresh.mkdir()
        _copy(self.folder, fresh)
        os.chown(fresh, there.st_uid, there.st_gid)
        fresh.chmod(there.st_mode & 0o7777)
        subprocess.run(["umount", str(self.folder)], check=True)
        self._mounted = False
        self.folder.rmdir()
        fresh.rename(self.folder)

    def give_up(self) -> None:
        """At the end, whatever happened: nothing stays mounted."""
        if self._mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--sparse=always", f"{source}/.", str(target)], check=True)


def used_bytes(folder: Path) -> int:
    """Bytes that the folder's files take on the disk, holes not counted."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


# ── CPU ───────────────────────────────────────────────────────────────────────────────────────────


@lru_cache
def no_cpu_group() -> str | None:
    """Why no control group can bound CPU here."""
    if not (CGROUP_V1_CPU / "cpu.shares").exists() and not (CGROUP_V1_CPU / "cgroup.procs").exists():
        return "no cpu controller of cgroup v1 (v2 would have to be delegated to us)"
    probe = CGROUP_V1_CPU / f"aos-chaos-probe-{os.getpid()}"
    try:
        probe.mkdir()
        (probe / "cpu.cfs_quota_us").write_text(str(PERIOD_US))
        probe.rmdir()
    except OSError as error:
        return f"cgroups are not ours to make: {error.strerror}"
    return None


@contextmanager
def cpu_share(pids: Iterable[int], share: float) -> Iterator[None]:
    """Bound processes to `share` of one core together; whoever they start meanwhile is bound too."""
    group = CGROUP_V1_CPU / f"aos-chaos-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    try:
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(int(share * PERIOD_US)))
        for pid in pids:
            _enter(group, pid)
        yield
    finally:
        for inside in (group / "cgroup.procs").read_text().split():
            _enter(CGROUP_V1_CPU, int(inside))
        ends = time.monotonic() + 5
        while True:
            try:
                group.rmdir()
                break
            except OSError:  # a process that is ending holds it a moment longer
                if time.monotonic() > ends:
                    raise
                time.sleep(0.05)


def _enter(group: Path, pid: int) -> None:
    try:
        (group / "cgroup.procs").write_text(str(pid))
    except ProcessLookupError:
        return  # it ended meanwhile


def cpu_seconds(pid: int) -> float:
    """CPU that a process has used; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_of(pid: int, what: str) -> int:
    """A line of /proc/<pid>/status in bytes (VmRSS, VmData, …); 0 when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{what}:")), 0)


# ── clocks ────────────────────────────────────────────────────────────────────────────────────────


@lru_cache
def faketime() -> Path | None:
    """libfaketime: installed, or unpacked from Debian's package into the cache; None when neither can be."""
    named = ctypes.util.find_library("faketime")
    for folder in (
        "/usr/lib/x86_64-linux-gnu/faketime",
        "/usr/lib/aarch64-linux-gnu/faketime",
        "/usr/lib/faketime",
    ):
        if (Path(folder) / FAKETIME).exists():
            return Path(folder) / FAKETIME
    if named:
        return Path(named)
    return _unpacked(cache_dir(Host.current()) / "faketime")


def _unpacked(target: Path) -> Path | None:
    if not target.is_dir():
        with tempfile.TemporaryDirectory(prefix="aos-faketime-") as folder:
            steps = (["apt-get", "download", "-q", "libfaketime"], ["dpkg", "-x", "", f"{folder}/root"])
            for step in steps:
                if shutil.which(step[0]) is None:
                    return None
                argv = [part or str(next(Path(folder).glob("*.deb"))) for part in step]
                if subprocess.run(argv, cwd=folder, capture_output=True).returncode:
                    return None
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(f"{folder}/root", target)
    return next(target.rglob(FAKETIME), None)


def no_faketime() -> str | None:
    """Why no process can be given a false clock here."""
    return None if faketime() else "libfaketime is neither installed nor to be had from Debian's packages"
