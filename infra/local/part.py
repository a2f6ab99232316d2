"""What all backing services have in common: start on their data folder, wait until they answer, kill, stop."""

import signal
import socket
import time
import urllib.error
import urllib.request

from place import say
from process import POLL_SECONDS, Failure, Process

# A part that does not answer by then does not come up: on a busy machine Kafka needs 10 s.
ANSWER_SECONDS = 90
# A part that has not ended by then is killed: Kafka needs 3 s, MongoDB and PostgreSQL write a checkpoint.
STOP_SECONDS = 30
# One question whether a part answers; it is asked again until ANSWER_SECONDS are over.
QUESTION_SECONDS = 5
LOOPBACK = "127.0.0.1"
# Loopback is reached directly, whatever proxy the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class NotYet(Exception):
    """It runs and does not answer as it should."""


class Part:
    """One server process. A subclass says how it is prepared, started, asked and set up."""

    name = ""
    # What infra/local/up says it is.
    meaning = ""
    # What install.Tools must have installed.
    needs = ()
    stop_signal = signal.SIGTERM

    def __init__(self, place, tools):
        self.place = place
        self.tools = tools
        self.folder = place.data / self.name
        self.process = Process(self.name, place.data / f"pids/{self.name}", place.data / f"logs/{self.name}.log")

    def ports(self):
        """Every port it listens on; clients use the first."""
        raise NotImplementedError

    def prepare(self):
        """Makes its folder and configuration; done before every start."""

    def command(self):
        """The command that is the server, and no parent of it."""
        raise NotImplementedError

    def options(self):
        """subprocess.Popen's further arguments."""
        return {}

    def check(self):
        """Raises NotYet or OSError unless it answers."""
        raise NotImplementedError

    def settle(self):
        """Makes what its clients find: databases, buckets. Done after every start, so it looks first."""

    def environment(self):
        """The variables that name it to its clients."""
        return {}

    def servers(self):
        """The processes that `part` controls one by one."""
        return [self]

    @property
    def port(self):
        return self.ports()[0]

    def running(self):
        return self.process.pid() is not None

    def launch(self):
        """Starts it if it does not run; whether it had to."""
        if self.running():
            return False
        self.folder.mkdir(exist_ok=True)
        self.prepare()
        self._ports_free()
        say(f"starting {self.name}")
        self.process.spawn(self.command(), **self.options())
        return True

    def await_answer(self):
        """Waits until it answers."""
        until = time.monotonic() + ANSWER_SECONDS
        while True:
            # Asked first whether it runs: the answer of another server on its port does not count.
            if not self.running():
                raise self.process.failure("has ended")
            try:
                return self.check()
            except (NotYet, OSError) as error:
                if time.monotonic() > until:
                    raise self.process.failure(f"does not answer within {ANSWER_SECONDS} s ({error})") from error
            time.sleep(POLL_SECONDS)

    def start(self):
        """Starts it and waits until clients can use it."""
        started = self.launch()
        self.await_answer()
        self.settle()
        return started

    def kill(self):
        """SIGKILL."""
        self.process.kill()

    def freeze(self):
        """SIGSTOP: it keeps its connections and answers nothing."""
        self._must_take(signal.SIGSTOP)

    def thaw(self):
        """SIGCONT: it goes on where it was."""
        self._must_take(signal.SIGCONT)

    def _must_take(self, number):
        if not self.process.signal(number):
            raise Failure(f"{self.name} does not run")

    def ask_to_stop(self):
        """Whether there was a process to ask."""
        return self.process.signal(self.stop_signal)

    def await_stop(self):
        """Waits for its end, and kills it when that takes too long."""
        if not self.process.await_end(STOP_SECONDS):
            say(f"{self.name} does not stop within {STOP_SECONDS} s: killing it")
            self.kill()

    def _ports_free(self):
        for port in self.ports():
            with socket.socket() as probe:
                # As servers do: a connection in TIME_WAIT does not hold the port.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((LOOPBACK, port))
                except OSError as error:
                    raise Failure(f"{self.name}: port {port} is taken by something else ({error.strerror}); end that, "
                                  f"or choose other ports: LOCAL_PORT_BASE (now {self.place.base}) in a data "
                                  "folder of their own (LOCAL_DATA)") from error


def connect(port):
    """A connection to a loopback port."""
    return socket.create_connection((LOOPBACK, port), timeout=QUESTION_SECONDS)


def http(method, url, headers=None):
    """The status of a request without a body."""
    request = urllib.request.Request(url, method=method, headers=headers or {})
    try:
        with DIRECT.open(request, timeout=QUESTION_SECONDS) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
