"""Which Maven fetches the broker: the machine's, else Debian's packages of it, unpacked without root into the cache."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from aos.infra.local.apt import SUITE, Packages
from aos.infra.local.cache import install, progress
from aos.infra.local.children import Children
from aos.infra.local.host import Host, StackError, check_disk

INSTALL_BYTES = 60 << 20
FOLDER = f"maven-{SUITE}"
# Java is found or brought by itself (java.py); all below it in the list of packages is what Java would need.
NEEDLESS = re.compile(r"^(?!maven$|lib.*-java$)|^libatk-wrapper")
HINT = "Install it (on Debian: apt-get install maven), or give the address of a running broker."


def ensure_maven(host: Host, children: Children) -> Path:
    """The program mvn. It needs JAVA_HOME, or a Java on the PATH."""
    return host.which("mvn") or install_maven(host, children)


def install_maven(host: Host, children: Children) -> Path:
    """Maven from Debian's packages."""

    def build(folder: Path) -> None:
        packages = Packages(host, children, folder, "Maven (mvn)", HINT)
        packages.require()
        check_disk(host, folder, INSTALL_BYTES, "Maven")
        host.say(f"no Maven here: fetching it from Debian {SUITE}'s packages (10 MB, once) …")
        with progress(host, "fetching Maven", folder):
            packages.unpack("maven", NEEDLESS)
            keep_links_inside(packages.root)
        shutil.rmtree(packages.apt)

    program = install(host, FOLDER, "Maven", build) / "root" / "usr" / "share" / "maven" / "bin" / "mvn"
    if not program.is_file():
        raise StackError(f"Debian {SUITE}'s packages of Maven hold no program {program.name}.", HINT)
    return program


def keep_links_inside(root: Path) -> None:
    """Point links to places of the machine (/etc/maven, /usr/share/java) at the same places below `root`."""
    for path in root.rglob("*"):
        if path.is_symlink() and os.readlink(path).startswith("/"):
            target = root / os.readlink(path).lstrip("/")
            path.unlink()
            path.symlink_to(os.path.relpath(target, path.parent))
