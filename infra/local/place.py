"""Where a set of backing services lives: its data folder, its ports, its passwords, its lock."""

import contextlib
import fcntl
import os
import pathlib
import secrets
import sys

from process import Failure

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").absolute()
# Below the ports that Linux hands out to clients (from 32768), above those of well-known servers.
PORT_BASE = 27300
# A set takes its ports from this many after the base.
PORTS = 80


def say(text):
    """Progress goes to stderr: stdout holds what a shell evaluates."""
    # In one write, so that lines of parts that start together do not mix.
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Place:
    """One data folder and the ports that belong to it."""

    def __init__(self, data=None):
        self.data = pathlib.Path(data or os.environ.get("LOCAL_DATA") or TARGET / "local").absolute()
        self.tools = self._tools()
        self.base = self._base()

    def _tools(self):
        """Where the tools are: those that started this data folder's servers, as long as they are there."""
        if os.environ.get("LOCAL_TOOLS"):
            return pathlib.Path(os.environ["LOCAL_TOOLS"]).absolute()
        try:
            kept = pathlib.Path((self.data / "tools").read_text().strip())
        except FileNotFoundError:
            kept = None
        return kept if kept is not None and kept.is_dir() else TARGET / "local-tools"

    def _base(self):
        """The data folder's port base; a new folder takes LOCAL_PORT_BASE. Replica set and cluster keep ports in
        their data, so it never changes."""
        wanted = os.environ.get("LOCAL_PORT_BASE")
        if wanted is not None and not (wanted.isdecimal() and 1024 <= int(wanted) <= 65535 - PORTS):
            raise Failure(f"LOCAL_PORT_BASE={wanted}: give a number from 1024 to {65535 - PORTS}")
        try:
            kept = int((self.data / "port-base").read_text())
        except FileNotFoundError:
            return int(wanted or PORT_BASE)
        if wanted is not None and int(wanted) != kept:
            raise Failure(f"LOCAL_PORT_BASE={wanted}, but {self.data} was made with {kept}: unset it, name another "
                          "folder (--data, LOCAL_DATA), or delete this one with infra/local/down --wipe")
        return kept

    def make(self):
        """Makes the folders and keeps where ports and tools are."""
        for folder in (self.data, self.data / "logs", self.data / "pids"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.data / "port-base").write_text(f"{self.base}\n")
        (self.data / "tools").write_text(f"{self.tools}\n")

    def secret(self, name, make=lambda: secrets.token_hex(16)):
        """A password of this data folder, made up when it is first asked for."""
        folder = self.data / "secrets"
        folder.mkdir(mode=0o700, exist_ok=True)
        file = folder / name
        if not file.exists():
            new = folder / f"{name}.new"
            new.write_text(make())
            new.chmod(0o600)
            new.rename(file)
        return file.read_text()

    @contextlib.contextmanager
    def lock(self):
        """One command at a time works on a data folder. Beside the folder, since `down --wipe` deletes it."""
        self.data.parent.mkdir(parents=True, exist_ok=True)
        with lock(self.data.with_name(f"{self.data.name}.lock")):
            yield


@contextlib.contextmanager
def lock(path):
    """Holds a file's lock, waiting for whoever has it."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another command, which holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
