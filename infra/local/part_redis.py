"""Redis: one server for most tests, and a cluster of three masters with a replica each, for slots and failover."""

import shutil
import time

import install
from part import LOOPBACK, POLL_SECONDS, NotYet, Part, connect
from process import Failure

# When an append is synced. `always`: before the command is answered, since what was answered must outlive a crash.
# `everysec`, Redis's default, is faster by far and loses up to a second.
APPENDFSYNC = "always"
MASTERS = 3
REPLICAS_PER_MASTER = 1
# A master is given up after this long without an answer.
CLUSTER_NODE_TIMEOUT_MS = 2000
# Nodes that start together know each other again after a few gossip rounds and, if need be, an election.
FORM_SECONDS = 60

CONFIG = """\
bind 127.0.0.1
port {port}
dir {folder}
daemonize no
# Two snapshots of persistence would only cost: the append-only file has everything.
save ""
appendonly yes
appendfsync {appendfsync}
maxmemory {memory}
# A full store refuses writes; it never drops what was acknowledged.
maxmemory-policy noeviction
"""
CLUSTER_CONFIG = """\
cluster-enabled yes
cluster-config-file nodes.conf
cluster-port {bus}
cluster-announce-ip 127.0.0.1
cluster-node-timeout {timeout}
# A slot lives and dies by itself: without its master the others go on.
cluster-require-full-coverage no
"""


class Redis(Part):
    name = "redis"
    meaning = f"Redis, one server, appendfsync {APPENDFSYNC}"
    needs = ("redis",)
    memory = "512mb"

    def ports(self):
        return [self.place.base]

    def config(self):
        return CONFIG.format(port=self.port, folder=self.folder, appendfsync=APPENDFSYNC, memory=self.memory)

    def prepare(self):
        (self.folder / "redis.conf").write_text(self.config())

    def command(self):
        return [shutil.which("redis-server"), self.folder / "redis.conf"]

    def check(self):
        answer = self.ask("PING")
        # While it reads its file it says LOADING.
        if not answer.startswith("+PONG"):
            raise NotYet(answer.strip())

    def ask(self, *words):
        """A short command's answer, as Redis writes it."""
        with connect(self.port) as server:
            server.sendall(" ".join(words).encode() + b"\r\n")
            answer = b""
            while not complete(answer):
                part = server.recv(65536)
                if not part:
                    raise NotYet("closed the connection")
                answer += part
        return answer.decode()

    def environment(self):
        return {"TEST_REDIS_URL": f"redis://{LOOPBACK}:{self.port}"}


def complete(answer):
    """Whether this is a whole answer: one line, or a string of the length that its first line tells."""
    line, end, rest = answer.partition(b"\r\n")
    if not end:
        return False
    return not line.startswith(b"$") or len(rest) >= int(line[1:]) + 2


class Node(Redis):
    """One process of the cluster."""

    memory = "256mb"

    def __init__(self, place, tools, number):
        self.name = f"redis-cluster-{number}"
        self.number = number
        super().__init__(place, tools)

    def ports(self):
        # The second is the cluster bus, which is at port + 10000 unless told otherwise.
        return [self.place.base + self.number, self.place.base + 10 + self.number]

    def config(self):
        return super().config() + CLUSTER_CONFIG.format(bus=self.ports()[1], timeout=CLUSTER_NODE_TIMEOUT_MS)

    def info(self):
        """CLUSTER INFO as a dict."""
        lines = self.ask("CLUSTER", "INFO").splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def environment(self):
        return {}


class Cluster(Part):
    """The nodes and what makes them one."""

    name = "redis-cluster"
    meaning = f"Redis Cluster, {MASTERS} masters with {REPLICAS_PER_MASTER} replica each"
    needs = ("redis",)

    def __init__(self, place, tools):
        super().__init__(place, tools)
        count = MASTERS * (1 + REPLICAS_PER_MASTER)
        self.nodes = [Node(place, tools, number) for number in range(1, count + 1)]
        self.formed = place.data / "redis-cluster-formed"

    def servers(self):
        return self.nodes

    def start(self):
        if not self.formed.exists():
            self._clear()
        # All are started before one is waited for.
        started = [node.launch() for node in self.nodes]
        for node in self.nodes:
            node.await_answer()
        if not self.formed.exists():
            self._form()
        self._await_formed()
        return any(started)

    def _clear(self):
        """Leaves nothing of an attempt to form the cluster that was cut off."""
        for node in self.nodes:
            node.kill()
            shutil.rmtree(node.folder, ignore_errors=True)

    def _form(self):
        addresses = [f"{LOOPBACK}:{node.port}" for node in self.nodes]
        install.run(["redis-cli", "--cluster", "create", *addresses, "--cluster-replicas", str(REPLICAS_PER_MASTER),
                     "--cluster-yes"], quiet=True)
        self.formed.touch()

    def _await_formed(self):
        """Every node must see all slots served and all nodes, and every replica its master."""
        until = time.monotonic() + FORM_SECONDS
        for node in self.nodes:
            while (lack := self._lack(node)) is not None:
                if time.monotonic() > until:
                    raise Failure(f"redis-cluster: {node.name}: {lack} after {FORM_SECONDS} s")
                time.sleep(POLL_SECONDS)

    def _lack(self, node):
        try:
            info = node.info()
            link = node.ask("INFO", "replication")
        except (NotYet, OSError) as error:
            return str(error)
        if info.get("cluster_state") != "ok":
            return "not every slot is served"
        if info.get("cluster_known_nodes") != str(len(self.nodes)):
            return f"knows {info.get('cluster_known_nodes')} nodes"
        if "master_link_status:down" in link:
            return "its master does not answer it"
        return None

    def environment(self):
        addresses = ",".join(f"{LOOPBACK}:{node.port}" for node in self.nodes[:MASTERS])
        return {"TEST_REDIS_CLUSTER_URL": f"redis+cluster://{addresses}"}
