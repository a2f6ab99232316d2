"""Apache Kafka: one broker in KRaft mode, which syncs every append."""

import os
import shutil
import struct

import install
from part import LOOPBACK, NotYet, Part, connect
from place import say

FILES = install.HERE / "kafka"
# For a fast start on few cores: the small compiler only, the small collector, and classes from an archive.
JAVA = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
HEAP = ["-Xms128m", "-Xmx512m"]
METADATA = 3
METADATA_VERSION = 4


class Kafka(Part):
    name = "kafka"
    meaning = "Apache Kafka 4.3, one broker (KRaft)"
    needs = ("kafka",)

    def __init__(self, place, tools):
        super().__init__(place, tools)
        self.properties = self.folder / "server.properties"
        self.class_path = str(tools.jars / "libs/*")
        self.archive = tools.jars / "classes.jsa"
        # Flags of the next start alone.
        self.flags = []

    def ports(self):
        return [self.place.base + 40, self.place.base + 41]

    def prepare(self):
        text = (FILES / "server.properties").read_text()
        port, controller = self.ports()
        for mark, value in (("@PORT@", port), ("@CONTROLLER_PORT@", controller), ("@DATA@", self.folder / "data")):
            text = text.replace(mark, str(value))
        self.properties.write_text(text)
        if not (self.folder / "formatted").exists():
            shutil.rmtree(self.folder / "data", ignore_errors=True)
            # Any id of 16 bytes in base64 will do: this broker meets no other.
            install.run(["java", "-Xmx128m", *JAVA, "-cp", self.class_path, "kafka.tools.StorageTool", "format",
                         "-t", "bG9jYWwtZHJvbmUtbG9nMQ", "-c", self.properties], quiet=True)
            (self.folder / "formatted").touch()

    def launch(self):
        if not self.running() and not self.archive.exists():
            self._archive_classes()
        return super().launch()

    def _archive_classes(self):
        """Once for these jars: starts and stops the broker, which then writes down the classes it has loaded. That
        halves the time of every later start."""
        new = self.archive.with_name(f"classes.{os.getpid()}.jsa")
        self.flags = [f"-XX:ArchiveClassesAtExit={new}"]
        say("kafka: starting and stopping it once, to archive its classes")
        super().launch()
        self.await_answer()
        self.ask_to_stop()
        self.await_stop()
        self.flags = []
        # Without an archive it starts more slowly, no more.
        if new.exists():
            new.rename(self.archive)

    def command(self):
        archive = [f"-XX:SharedArchiveFile={self.archive}"] if self.archive.exists() else []
        return ["java", *HEAP, *JAVA, *(self.flags or archive), f"-Dlog4j2.configurationFile={FILES / 'log4j2.yaml'}",
                "-cp", self.class_path, "kafka.Kafka", self.properties]

    def options(self):
        # Kafka's own log folder would be made in the current one.
        return {"cwd": self.folder}

    def check(self):
        """Asks for the brokers; a broker that is not yet part of its own cluster is not among them."""
        client = b"infra-local"
        # No topic, and none is made.
        body = struct.pack(">hhih", METADATA, METADATA_VERSION, 1, len(client)) + client + struct.pack(">ib", 0, 0)
        with connect(self.port) as server:
            server.sendall(struct.pack(">i", len(body)) + body)
            answer = server.recv(4096)
        # Length, correlation id, throttle time, count of brokers.
        if len(answer) < 16 or struct.unpack_from(">i", answer, 12)[0] != 1:
            raise NotYet("the broker is not part of its cluster yet")

    def environment(self):
        return {"TEST_KAFKA_URL": f"kafka://{LOOPBACK}:{self.port}"}
