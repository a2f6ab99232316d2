"""A background process that a later command finds again, by its pid file, and ends by its pid."""

import os
import pathlib
import signal
import subprocess
import time

# A process that was sent SIGKILL is gone within milliseconds, unless the disk holds it.
KILL_SECONDS = 10
# Short against any start or stop.
POLL_SECONDS = 0.02
# Lines of a log that are shown when a part fails.
SHOWN_LINES = 25


class Failure(Exception):
    """What went wrong, for people."""


def started_at(pid):
    """The kernel's time at which this process started, or None if there is none (a zombie is none)."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in brackets may hold spaces and brackets; the state is the first field after it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


class Process:
    """One process. Its pid file holds the pid and the time at which that pid started.

    A pid may be reused after a crash; together with its start time it is not. The command line would tell less:
    redis and postgres write their own.
    """

    def __init__(self, name, pid_file, log):
        self.name = name
        self.pid_file = pid_file
        self.log = log

    def pid(self):
        """The pid if the process runs, else None."""
        try:
            pid, began = map(int, self.pid_file.read_text().split())
        except (OSError, ValueError):
            return None
        return pid if started_at(pid) == began else None

    def spawn(self, command, **options):
        """Starts it in a session of its own, so that neither a Ctrl-C nor the end of this command ends it."""
        with open(self.log, "ab") as log:
            try:
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                         start_new_session=True, **options)
            except OSError as error:
                raise Failure(f"{self.name}: cannot start {command[0]}: {error}") from error
        began = started_at(child.pid)
        if began is None:
            raise self.failure("ended at once")
        self.pid_file.write_text(f"{child.pid} {began}\n")

    def signal(self, number):
        """Sends a signal; whether there was a process to send it to."""
        pid = self.pid()
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            raise Failure(f"{self.name}: process {pid} belongs to another user") from error
        return True

    def await_end(self, seconds):
        """Whether it is gone within that time."""
        until = time.monotonic() + seconds
        while self.pid() is not None:
            if time.monotonic() > until:
                return False
            time.sleep(POLL_SECONDS)
        self.pid_file.unlink(missing_ok=True)
        return True

    def kill(self):
        """SIGKILL, and waits until it is gone."""
        self.signal(signal.SIGKILL)
        if not self.await_end(KILL_SECONDS):
            raise Failure(f"{self.name}: process {self.pid()} is still there {KILL_SECONDS} s after SIGKILL")

    def memory_mib(self):
        """Resident memory of it and of its children (PostgreSQL's; pages they share count once), in MiB."""
        pid = self.pid()
        return 0 if pid is None else sum(map(proportional_kib, [pid, *children(pid)])) // 1024

    def failure(self, what):
        """A Failure with the end of the log."""
        try:
            tail = self.log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
        except OSError:
            tail = []
        return Failure("\n".join([f"{self.name}: {what}; the end of {self.log}:", *(f"  | {line}" for line in tail)]))


def children(pid):
    """The pids of a process's direct children."""
    try:
        return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def proportional_kib(pid):
    """A process's share of the memory (PSS), or its resident memory where the kernel does not tell it."""
    for file, field in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            lines = pathlib.Path(f"/proc/{pid}/{file}").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(field):
                return int(line.split()[1])
    return 0
