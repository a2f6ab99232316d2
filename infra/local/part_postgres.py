"""PostgreSQL: a cluster of its own, ready for logical decoding, with a role that may create databases."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import install
from part import LOOPBACK, POLL_SECONDS, NotYet, Part
from process import Failure

ROLE = "drone"
# Of the two services and of the tests, which create further ones.
DATABASES = ("delivery", "fleet", "test")
# The user that Debian's package makes: PostgreSQL refuses to run as root.
SYSTEM_USER = "postgres"
# Backends end within milliseconds of their postmaster; one in a long system call takes longer.
ORPHANS_SECONDS = 20

CONFIG = """\
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = 200
shared_buffers = 128MB
# What was committed is on disk.
fsync = on
synchronous_commit = on
# For change data capture.
wal_level = logical
max_wal_senders = 20
max_replication_slots = 20
# A slot that nobody reads must not fill the disk.
max_slot_wal_keep_size = 2GB
autovacuum = on
# Slow statements are worth a line.
log_min_duration_statement = 1000
log_line_prefix = '%m [%p] %d '
"""


class Postgres(Part):
    name = "postgres"
    meaning = f"PostgreSQL with logical decoding; databases {', '.join(DATABASES)}"
    needs = ("postgres",)
    # Fast shutdown: SIGTERM would wait for every client to leave.
    stop_signal = signal.SIGINT

    def __init__(self, place, tools):
        super().__init__(place, tools)
        self.cluster = self.folder / "cluster"
        self.settled = self.folder / "settled"

    def ports(self):
        return [self.place.base + 30]

    def prepare(self):
        if os.geteuid() == 0:
            shutil.chown(self.folder, SYSTEM_USER, SYSTEM_USER)
        if not self.cluster.exists():
            self._init()
        (self.cluster / "postgresql.auto.conf").unlink(missing_ok=True)
        (self.cluster / "local.conf").write_text(CONFIG.format(port=self.port))
        (self.cluster / "local.conf").chmod(0o644)
        self._clear_after_crash()

    def _as_user(self):
        """What makes root's command run as the user postgres; it replaces itself, so the pid stays."""
        if os.geteuid() != 0:
            return []
        user = ["setpriv", "--reuid", SYSTEM_USER, "--regid", SYSTEM_USER, "--init-groups"]
        # A folder above may be closed to that user (/root is): then it needs leave to pass all the same.
        capable = [*user, "--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"]
        for prefix in (user, capable):
            # Not `test -x`: access(2) takes no account of leave.
            if subprocess.run([*prefix, "ls", f"{self.folder}/."], capture_output=True).returncode == 0:
                return prefix
        raise Failure(f"postgres: the user {SYSTEM_USER} cannot enter {self.folder}, and root cannot run PostgreSQL; "
                      "choose a folder that others may enter: --data or LOCAL_DATA")

    def _init(self):
        """initdb into a folder beside, so that one cut off is never taken for a cluster."""
        new = self.folder / "cluster.new"
        shutil.rmtree(new, ignore_errors=True)
        password = self.folder / "password"
        password.write_text(self.place.secret("postgres-admin"))
        if os.geteuid() == 0:
            shutil.chown(password, SYSTEM_USER)
        password.chmod(0o600)
        install.run([*self._as_user(), install.postgres_bin() / "initdb", "--pgdata", new, "--username", "postgres",
                     "--pwfile", password, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"],
                    quiet=True, cwd=self.folder)
        password.unlink()
        with open(new / "postgresql.conf", "a") as config:
            config.write("include 'local.conf'\n")
        new.rename(self.cluster)

    def _clear_after_crash(self):
        """After a SIGKILL of the postmaster its backends still hold the shared memory for a moment, and its pid file
        may name a pid that is another's by now."""
        until = time.monotonic() + ORPHANS_SECONDS
        while orphans := self._processes():
            if time.monotonic() > until:
                raise Failure(f"postgres: processes {orphans} of an earlier start still use {self.cluster}")
            time.sleep(POLL_SECONDS)
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)

    def _processes(self):
        """Every process that works in the cluster's folder: postmaster and backends do."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and os.readlink(entry / "cwd") == str(self.cluster.resolve()):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def command(self):
        return [*self._as_user(), install.postgres_bin() / "postgres", "-D", self.cluster]

    def options(self):
        return {"cwd": self.folder}

    def check(self):
        ready = subprocess.run([install.postgres_bin() / "pg_isready", "-q", "-h", LOOPBACK, "-p", str(self.port)])
        if ready.returncode != 0:
            raise NotYet("pg_isready says no")

    def settle(self):
        if self.settled.exists():
            return
        password = self.place.secret("postgres")
        self._sql("do $$ begin "
                  f"if not exists (select from pg_roles where rolname = '{ROLE}') then create role {ROLE}; end if; "
                  "end $$",
                  f"alter role {ROLE} login createdb replication password '{password}'",
                  f"grant pg_monitor to {ROLE}")
        for database in DATABASES:
            if not self._sql(f"select 1 from pg_database where datname = '{database}'"):
                self._sql(f"create database {database} owner {ROLE}")
        self.settled.touch()

    def _sql(self, *statements):
        """Runs statements as the superuser; what they print."""
        arguments = [argument for statement in statements for argument in ("-c", statement)]
        ran = subprocess.run([install.postgres_bin() / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1",
                              "-h", LOOPBACK, "-p", str(self.port), "-U", "postgres", "-d", "postgres", *arguments],
                             env={**os.environ, "PGPASSWORD": self.place.secret("postgres-admin")},
                             capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if ran.returncode != 0:
            raise Failure(f"postgres: {ran.stderr.strip()}")
        return ran.stdout.strip()

    def environment(self):
        password = self.place.secret("postgres")
        return {"TEST_POSTGRES_URL": f"postgres://{ROLE}:{password}@{LOOPBACK}:{self.port}/test"}
