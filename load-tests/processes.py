"""The services as processes of their own on the real stores: started, killed, stopped; used by the other scripts here."""

import atexit
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A debug build on a busy machine needs a few seconds, and the first start makes schemas, indexes and topics.
START_SECONDS = 60
# Services end within 15 s or are cut off.
STOP_SECONDS = 25
# Between two questions: short against what is measured.
POLL_SECONDS = 0.1
# Between two questions whether all is done, and how many answers in a row make it so.
SETTLE_POLL_SECONDS = 0.3
QUIET_IN_A_ROW = 4
# What a program needs of the environment; nothing of the caller's configuration reaches a service unasked.
KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "RUST_BACKTRACE", "LOG")
# The services in the order of their start, with their replicas.
REPLICAS = {"package": 2, "fleet": 1, "tracking": 2, "history": 2, "lookup": 1, "delivery": 2, "gateway": 1}


class Failure(Exception):
    """What went wrong, for people."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, each another: all are taken before the first is given back."""
    with contextlib.ExitStack() as taken:
        sockets = [taken.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def needed(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise Failure(f"{name} is not set: eval \"$(infra/local/up)\"")
    return value


def fresh_stores(cluster: bool) -> dict[str, str]:
    """URLs of stores that nobody has used: a schema, a database, a prefix each; tracking's on a Redis Cluster or not."""
    run = uuid.uuid4().hex[:12]
    postgres, mongodb = needed("TEST_POSTGRES_URL"), needed("TEST_MONGODB_URL")
    for schema in (f"delivery_{run}", f"fleet_{run}"):
        made = subprocess.run(["psql", "-q", postgres, "-c", f"create schema {schema}"], capture_output=True, text=True)
        if made.returncode != 0:
            raise Failure(f"psql: {made.stderr.strip()}")
    host, options = mongodb.split("/?", 1)
    urls = {
        "EVENT_LOG": f"{needed('TEST_KAFKA_URL')}/run-{run}",
        "DELIVERY_STORE": f"{postgres}?options[search_path]=delivery_{run}",
        "FLEET_STORE": f"{postgres}?options[search_path]=fleet_{run}",
        "PACKAGE_STORE": f"{host}/package_{run}?{options}",
        "LOOKUP_STORE": f"{host}/lookup_{run}?{options}",
        "TRACKING_STORE": f"{needed('TEST_REDIS_CLUSTER_URL' if cluster else 'TEST_REDIS_URL')}?prefix=run-{run}",
        "LAKE": f"{needed('TEST_S3_URL')}/run-{run}/",
    }
    return urls


class Service:
    """One replica of one service."""

    def __init__(self, system: "System", name: str, number: int, port: int):
        self.system, self.name, self.number, self.port = system, name, number, port
        self.process: subprocess.Popen | None = None

    @property
    def label(self) -> str:
        return f"{self.name}-{self.number}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with (self.system.folder / f"{self.label}.log").open("ab") as log:
            command = [str(self.system.binaries / self.name)]
            self.process = subprocess.Popen(command, env=self.system.environment(self), stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, start_new_session=True)

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait_until_live(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if not self.is_alive():
                raise Failure(f"{self.label} ended at its start:\n{self.last_words()}")
            try:
                with urllib.request.urlopen(f"{self.url}/health/live", timeout=2):
                    return
            except (OSError, urllib.error.URLError):
                time.sleep(POLL_SECONDS)
        raise Failure(f"{self.label} does not answer after {START_SECONDS} s:\n{self.last_words()}")

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def ask_to_stop(self) -> None:
        if self.is_alive():
            self.process.send_signal(signal.SIGTERM)

    def await_stop(self) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as slow:
            self.kill()
            raise Failure(f"{self.label} did not stop within {STOP_SECONDS} s") from slow

    def last_words(self, lines: int = 15) -> str:
        log = self.system.folder / f"{self.label}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


class System:
    """All services on one set of stores."""

    def __init__(self, folder: pathlib.Path, binaries: pathlib.Path, replicas: dict[str, int] | None = None,
                 cluster: bool = False):
        self.folder, self.binaries = folder.absolute(), binaries.absolute()
        if not (self.binaries / "all-in-one").exists():
            raise Failure(f"{self.binaries} has no programs yet: cargo build --workspace (--release for target/release)")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stores = fresh_stores(cluster)
        counts = replicas or REPLICAS
        names = [(name, number + 1) for name, count in counts.items() for number in range(count)]
        self.services = [Service(self, *name, port) for name, port in zip(names, free_ports(len(names)))]
        atexit.register(self.kill)
        # Makes the signing key that all services share.
        self.token("nobody", "customer")

    def of(self, name: str) -> list[Service]:
        return [service for service in self.services if service.name == name]

    @property
    def url(self) -> str:
        return self.of("gateway")[0].url

    def environment(self, service: Service) -> dict[str, str]:
        peers = ",".join(f"{peer.name}={peer.url}" for peer in self.services)
        own = {
            "LISTEN": f"127.0.0.1:{service.port}",
            "DEV_ISSUER_KEY": str(self.folder / "dev-issuer.key"),
            "DEV_ISSUER": "true",
            "PEERS": peers,
        }
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        objects = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "AZURE_"))}
        return kept | objects | self.stores | own

    def tool(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        """A command of all-in-one on these stores."""
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        objects = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "AZURE_"))}
        environment = kept | objects | self.stores | {"DATA_DIR": str(self.folder)}
        return subprocess.run([str(self.binaries / "all-in-one"), *arguments], env=environment, text=True,
                              capture_output=True, **options)

    def token(self, subject: str, role: str) -> str:
        made = self.tool("token", "--subject", subject, "--role", role)
        if made.returncode != 0:
            raise Failure(f"no token: {made.stderr.strip()}")
        return made.stdout.strip()

    def start(self) -> None:
        for service in self.services:
            service.start()
        for service in self.services:
            service.wait_until_live()

    def stop(self) -> None:
        for service in self.services:
            service.ask_to_stop()
        for service in self.services:
            service.await_stop()

    def kill(self) -> None:
        for service in self.services:
            if service.is_alive():
                service.kill()

    def get(self, path: str, token: str, timeout: float = 5.0):
        request = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)

    def database(self, service: str) -> str:
        """Where psql finds a service's tables."""
        server, search_path = self.stores[f"{service.upper()}_STORE"].split("?options[search_path]=")
        return f"{server}?options=-csearch_path%3D{search_path}"

    def settle(self, seconds: float = 60) -> bool:
        """Waits until no saga is open and every consumer has everything, and says whether that came: several times in a
        row, since between an outbox and the log an event is in neither."""
        operator, deadline, quiet = self.token("operator", "operator"), time.monotonic() + seconds, 0
        while time.monotonic() < deadline and quiet < QUIET_IN_A_ROW:
            try:
                sagas = self.get("/api/operations/sagas", operator)
                lag = self.get("/api/operations/lag", operator)
                idle = sagas["open"] == 0 and sum(item["lag"] for item in lag["items"]) == 0
            except OSError:
                idle = False
            quiet = quiet + 1 if idle else 0
            time.sleep(SETTLE_POLL_SECONDS)
        return quiet == QUIET_IN_A_ROW

    def audit(self, ledger: pathlib.Path) -> subprocess.CompletedProcess:
        """Over the stores at rest: stop the services first."""
        return self.tool("audit", "--accepted", str(ledger))
