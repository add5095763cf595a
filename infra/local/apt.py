"""Debian's packages without root: fetched through a private apt configuration and unpacked into a folder.

Own lists, an empty status, and the machine's own Debian source with its suite set to trixie: what is installed on the
machine neither matters nor changes. No host is named here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from aos.infra.local.cache import first, run_step, tail
from aos.infra.local.children import Children
from aos.infra.local.host import Host, StackError

SUITE = "trixie"
DEBIAN_SUITES = {"stable", "oldstable", "testing", "unstable", "sid", "bullseye", "bookworm", "trixie"}


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


class Packages:
    """The packages of one thing, unpacked into `folder`/root. `hint`: what to do where they cannot be had."""

    def __init__(self, host: Host, children: Children, folder: Path, what: str, hint: str) -> None:
        self.host, self.children, self.folder = host, children, folder
        self.what, self.hint = what, hint
        self.apt = folder / "apt"
        self.root = folder / "root"
        self.log = folder / "install.log"
        self.environ = {**host.environ, "APT_CONFIG": str(self.apt / "apt.conf"), "LC_ALL": "C"}

    def require(self) -> None:
        """Raise if this machine cannot fetch packages."""
        for program in ("apt-get", "dpkg"):
            if self.host.which(program) is None:
                raise StackError(
                    f"{self.what} was not found, and {program}, which fetches it, is missing.", self.hint
                )
        if not list(debian_sources(self.host.etc)):
            raise StackError(
                f"{self.what} was not found, and {self.host.etc}/apt names no Debian archive.", self.hint
            )

    def unpack(self, package: str, needless: re.Pattern[str]) -> None:
        """Fetch the package with all it depends on, but for what is needless, and unpack it."""
        self._configure()
        self._fetch(package, needless)
        for deb in sorted((self.apt / "debs").glob("*.deb")):
            if run_step(self.children, "dpkg", ["dpkg", "-x", deb, self.root], self.log) != 0:
                raise StackError(
                    f"The package {deb.name} could not be unpacked: {tail(self.log)}.", self.hint
                )

    def _configure(self) -> None:
        for sub in ("lists/partial", "cache/archives/partial", "sources", "debs"):
            (self.apt / sub).mkdir(parents=True)
        (self.apt / "status").touch()
        for number, (ending, text) in enumerate(debian_sources(self.host.etc)):
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

    def _fetch(self, package: str, needless: re.Pattern[str]) -> None:
        self._apt("update", "-q")
        listing = self._apt("install", "-qq", "-y", "--print-uris", package)
        names = re.findall(r"^'[^']+' ([^_\s]+)_\S+\.deb", listing, re.MULTILINE)
        wanted = [name for name in names if not needless.match(name)]
        if package not in wanted:
            raise StackError(f"Debian {SUITE} of this machine's source does not offer {package}.", self.hint)
        self._apt("download", "-q", *wanted)

    def _apt(self, *arguments: str) -> str:
        said = self.folder / f"apt-{arguments[0]}.log"
        argv = ["apt-get", *arguments]
        code = run_step(self.children, "apt-get", argv, said, env=self.environ, cwd=self.apt / "debs")
        text = said.read_text(errors="replace")
        if code != 0:
            raise StackError(
                f"apt-get {arguments[0]} failed while fetching {self.what}: {first(said, 'E: ')}.",
                f"Check the network and {self.host.etc}/apt. {self.hint}",
            )
        return text
