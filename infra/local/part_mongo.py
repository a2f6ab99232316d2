"""MongoDB: one mongod as a replica set of one member, so that it has transactions and change streams."""

import pathlib
import subprocess

from part import LOOPBACK, NotYet, Part

REPLICA_SET = "rs0"


class Mongo(Part):
    name = "mongo"
    meaning = f"MongoDB 6.0, replica set {REPLICA_SET} of one member"
    needs = ("python",)

    def ports(self):
        return [self.place.base + 20]

    def command(self):
        return [self.tools.mongod(), "--replSet", REPLICA_SET, "--bind_ip", LOOPBACK, "--port", str(self.port),
                "--dbpath", self.folder, "--nounixsocket", "--quiet", "--wiredTigerCacheSizeGB", "0.5",
                "--oplogSize", "512",
                # Expired documents go within a second or so, not within a minute.
                "--setParameter", "ttlMonitorSleepSecs=1",
                "--setParameter", "diagnosticDataCollectionEnabled=false"]

    def check(self):
        # Needs the driver: the replica set is initiated by the first command that finds it is not.
        script = pathlib.Path(__file__).with_name("mongo_replica_set.py")
        asked = subprocess.run([self.tools.python, script, REPLICA_SET, f"{LOOPBACK}:{self.port}"],
                               capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if asked.returncode != 0:
            raise NotYet((asked.stderr.strip().splitlines() or ["no primary"])[-1])

    def environment(self):
        return {"TEST_MONGODB_URL": f"mongodb://{LOOPBACK}:{self.port}/?replicaSet={REPLICA_SET}"}
