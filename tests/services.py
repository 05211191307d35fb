"""A real Kafka broker and a real PostgreSQL for tests and benchmarks, on loopback and on free ports.

Each service lives in its own temporary directory and ends, with everything it wrote, when the process
named by `owner_pid` ends, however it ends: a small guard process outside watches for that.
"""

from __future__ import annotations

import base64
import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ROOT / ".services"
KAFKA_VERSION = "4.3.1"
KAFKA_LIBS = SERVICES / f"kafka-{KAFKA_VERSION}"
MAVEN_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>inferwatch</groupId><artifactId>test-kafka</artifactId><version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""
GUARD = """
while kill -0 "$1" 2>/dev/null; do kill -0 "$2" 2>/dev/null || exit 0; sleep 0.5; done
kill -CONT "$2"; kill -"$3" "$2"; sleep 1; rm -rf "$4"
"""


class ServiceError(RuntimeError):
    """A service that a test needs cannot be had; the message says what to install or where it failed."""


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` between processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def free_ports(n: int) -> list[int]:
    """`n` TCP ports of loopback that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    tail = log.read_text(errors="replace")[-3000:] if log.exists() else ""
    raise ServiceError(f"port {port} did not open within {timeout_s:.0f} s; log ends:\n{tail}")


def need(program: str, debian_package: str, extra_dirs: Iterable[Path] = ()) -> str:
    """The path of a program; installs its Debian package where that is allowed.

    Raises ServiceError if it is missing and cannot be installed.
    """
    search = os.pathsep.join([os.environ.get("PATH", ""), *map(str, extra_dirs)])
    found = shutil.which(program, path=search)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        with file_lock(Path(tempfile.gettempdir()) / "inferwatch-apt.lock"):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            for command in (["update", "-q"], ["install", "-yq", "--no-install-recommends", debian_package]):
                subprocess.run(["apt-get", *command], check=False, env=environment, capture_output=True)
        found = shutil.which(program, path=search) or (
            need(program, debian_package, postgres_dirs()) if not extra_dirs and postgres_dirs() else None
        )
    if found is None:
        raise ServiceError(f"the tests need `{program}`; on Debian: apt-get install {debian_package}")
    return found


def postgres_dirs() -> list[Path]:
    """Debian keeps the server's programs off the PATH; newest version first."""
    return sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: -float(p.parent.name))


def kafka_classpath() -> str:
    """The jars of the broker, fetched once into .services/ with Maven."""
    with file_lock(SERVICES / "kafka.lock"):
        if not (KAFKA_LIBS / "complete").exists():
            KAFKA_LIBS.mkdir(parents=True, exist_ok=True)
            (KAFKA_LIBS / "pom.xml").write_text(POM)
            command = [need("mvn", "maven"), "-B", "-q", MAVEN_GOAL, "-DincludeScope=runtime"]
            command.append(f"-DoutputDirectory={KAFKA_LIBS / 'libs'}")
            done = subprocess.run(command, cwd=KAFKA_LIBS, capture_output=True, text=True)
            if done.returncode != 0:
                raise ServiceError(f"Maven could not fetch Kafka {KAFKA_VERSION}:\n{done.stdout[-3000:]}")
            (KAFKA_LIBS / "complete").touch()
    return str(KAFKA_LIBS / "libs" / "*")


class Service:
    """A process with a port and a temporary directory; a subclass says how it is started."""

    kill_signal = signal.SIGKILL  # what the guard sends

    def __init__(self, owner_pid: int | None = None) -> None:
        self.owner_pid = owner_pid or os.getpid()
        self.directory = Path(tempfile.mkdtemp(prefix=f"inferwatch-{type(self).__name__.lower()}-"))
        self.log = self.directory / "log"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def user(self) -> str | None:
        """The account to run as, None = ours."""
        return None

    @property
    def pid(self) -> int:
        assert self.process is not None, "not started"
        return self.process.pid

    def launch(self) -> None:
        assert not self.runs(), "already running"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                cwd=self.directory, **as_user(self.user()),
            )  # fmt: skip
        subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(self.owner_pid), str(self.pid),
             self.kill_signal.name.removeprefix("SIG"), str(self.directory)],
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).returncode = 0  # never waited for: it ends after its service  # fmt: skip
        wait_for_port(self.port, self.process, self.log)

    def kill(self) -> None:
        """kill -9: nothing is flushed, nobody is told."""
        self._end(signal.SIGKILL)

    def stop_process(self, timeout_s: float = 30.0) -> None:
        """A clean shutdown that keeps the data; `start` begins again."""
        assert self.process is not None, "not started"
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=timeout_s)

    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def pause(self) -> None:
        """Hang: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def unpause(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End the service and remove what it wrote."""
        if self.runs():
            self._end(signal.SIGKILL if self.kill_signal == signal.SIGKILL else signal.SIGINT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def disown(self) -> None:
        """Let somebody else end the process: its guard, or the controller of a test run."""
        if self.process is not None and self.process.returncode is None:
            self.process.returncode = 0

    def _end(self, number: signal.Signals) -> None:
        assert self.process is not None, "not started"
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(timeout=30)


class Broker(Service):
    """One Kafka broker in KRaft mode (broker and controller in one process).

    `properties` are added to server.properties, e.g. {"message.max.bytes": "1000000"}.
    """

    def __init__(self, owner_pid: int | None = None, properties: dict[str, str] | None = None) -> None:
        super().__init__(owner_pid)
        self.port, self.controller_port = free_ports(2)
        self.properties = properties or {}
        self.formatted = False

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> Broker:
        """Start, or start again on the same port with the data that is there; returns when it serves."""
        if not self.formatted:
            (self.directory / "server.properties").write_text(self._server_properties())
            cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", "server.properties"]
            done = subprocess.run(
                self._java(*tool), cwd=self.directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            if done.returncode != 0:
                raise ServiceError(f"Kafka's storage cannot be formatted: {done.stdout.decode()[-2000:]}")
            self.formatted = True
        self.launch()
        return self

    def restart(self) -> None:
        """kill -9 and start again, on the same port and data."""
        self.kill()
        self.start()

    def command(self) -> list[str]:
        return self._java("kafka.Kafka", "server.properties")

    def _java(self, *arguments: str) -> list[str]:
        options = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true"]
        return [need("java", "default-jre-headless"), *options, "-cp", kafka_classpath(), *arguments]

    def _server_properties(self) -> str:
        values = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.directory / "data"),
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "message.max.bytes": str(16 << 20),
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            **self.properties,
        }
        return "".join(f"{key}={value}\n" for key, value in values.items())


class Postgres(Service):
    """One PostgreSQL server; databases are created in it with `create_database`."""

    kill_signal = signal.SIGQUIT

    def __init__(self, owner_pid: int | None = None) -> None:
        super().__init__(owner_pid)
        (self.port,) = free_ports(1)
        self.data = self.directory / "data"

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://inferwatch@127.0.0.1:{self.port}/postgres"

    def user(self) -> str | None:
        """PostgreSQL refuses to run as root."""
        if os.geteuid() != 0:
            return None
        names = {entry.pw_name for entry in pwd.getpwall()}
        return next(name for name in ("postgres", "nobody") if name in names)

    def start(self) -> Postgres:
        """Start, or start again on the same port with the data that is there; returns when it serves."""
        if not self.data.exists():
            self.directory.chmod(0o711)
            self.data.mkdir(mode=0o700)
            if (user := self.user()) is not None:
                shutil.chown(self.data, user)
            command = [self._program("initdb"), "-D", str(self.data), "-U", "inferwatch", "-A", "trust"]
            command += ["-E", "UTF8", "--no-locale", "--no-sync"]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/", **as_user(self.user())
            )
            if done.returncode != 0:
                raise ServiceError(f"initdb failed: {done.stdout.decode()[-2000:]}")
        self.launch()
        self._wait_until_it_answers()
        return self

    def command(self) -> list[str]:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "200",
            "shared_buffers": "64MB",
        }
        flags = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        return [self._program("postgres"), "-D", str(self.data), *flags]

    def _program(self, name: str) -> str:
        return need(name, "postgresql", postgres_dirs())

    def _wait_until_it_answers(self, timeout_s: float = 60.0) -> None:
        import psycopg

        deadline = time.monotonic() + timeout_s
        while True:
            try:
                psycopg.connect(plain_url(self.url), connect_timeout=5).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return


class Alertmanager(Service):
    """One Alertmanager that passes everything on to a webhook at once; its API is at `url`."""

    def __init__(self, owner_pid: int | None = None, *, webhook_url: str) -> None:
        super().__init__(owner_pid)
        (self.port,) = free_ports(1)
        self.webhook_url = webhook_url

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Alertmanager:
        (self.directory / "alertmanager.yml").write_text(
            "route: {receiver: hook, group_by: [alertname, incident_id], group_wait: 0s, "
            "group_interval: 1s, repeat_interval: 1h}\n"
            "receivers: [{name: hook, webhook_configs: "
            f"[{{url: '{self.webhook_url}', send_resolved: true}}]}}]\n"
        )
        self.launch()
        return self

    def command(self) -> list[str]:
        return [
            need("prometheus-alertmanager", "prometheus-alertmanager"),
            "--config.file=alertmanager.yml",
            f"--storage.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--cluster.listen-address=",
        ]


def as_user(name: str | None) -> dict[str, object]:
    """Arguments of subprocess that run a program as another user."""
    if name is None:
        return {}
    entry = pwd.getpwnam(name)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def plain_url(url: str) -> str:
    """SQLAlchemy's URL as the one libpq reads."""
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def create_database(server_url: str, template: str = "template0") -> str:
    """A fresh database with a name of its own, empty or a copy of another; returns its SQLAlchemy URL."""
    import psycopg

    name = f"t_{uuid.uuid4().hex}"
    with psycopg.connect(plain_url(server_url), autocommit=True) as connection:
        connection.execute(f'create database "{name}" template "{template}"')
    return f"{server_url.rpartition('/')[0]}/{name}"


def drop_database(server_url: str, url: str) -> None:
    """Drop it even while something is connected."""
    import psycopg

    with psycopg.connect(plain_url(server_url), autocommit=True) as connection:
        connection.execute(f'drop database if exists "{url.rpartition("/")[2]}" with (force)')


def create_topic(
    bootstrap: str, name: str | None = None, partitions: int = 1, configs: dict[str, str] | None = None
) -> str:
    """Create a topic (a name of its own by default) and return its name once it has leaders."""
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic

    name = name or f"t-{uuid.uuid4().hex[:12]}"
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs or {})])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = admin.describe_topics([name])[0]
            ready = [p for p in found.get("partitions", []) if p.get("leader_id", p.get("leader", -1)) >= 0]
            if len(ready) == partitions:
                return name
            time.sleep(0.05)
        raise ServiceError(f"topic {name} has no leaders after 30 s: {found}")
    finally:
        admin.close()


def produce(
    bootstrap: str,
    topic: str,
    values: Iterable[bytes | None],
    partition: int = 0,
    headers: list[tuple[str, bytes]] | None = None,
    **options: object,
) -> list[int]:
    """Send messages to one partition and return their offsets; None is a tombstone."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=bootstrap, **{"linger_ms": 5, **options})
    try:
        key = b"k"
        sent = [
            producer.send(topic, value=value, key=key, partition=partition, headers=headers)
            for value in values
        ]
        producer.flush()
        return [future.get(timeout=30).offset for future in sent]
    finally:
        producer.close()


def end_offset(bootstrap: str, topic: str, partition: int = 0) -> int:
    """Where the next message of a partition will stand."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    try:
        place = TopicPartition(topic, partition)
        return int(consumer.end_offsets([place])[place])
    finally:
        consumer.close()
