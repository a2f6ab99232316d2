"""The commands of infra/local: up, down, status and part."""

import argparse
import concurrent.futures
import os
import resource
import shutil
import signal
import sys

from install import Tools
from part import NotYet
from part_kafka import Kafka
from part_mongo import Mongo
from part_objects import S3, Azure
from part_postgres import Postgres
from part_redis import Cluster, Redis
from place import PORT_BASE, PORTS, Place, say
from process import Failure

KINDS = (Redis, Cluster, Mongo, Postgres, Kafka, S3, Azure)
MEANINGS = "\n".join(f"  {kind.name:<14} {kind.meaning}" for kind in KINDS)
VARIABLES = f"""\
environment:
  LOCAL_DATA       the data folder, as --data; default target/local
  LOCAL_PORT_BASE  the first of {PORTS} ports on 127.0.0.1; default {PORT_BASE}. A data folder keeps the one that it
                   was made with, so a second set needs both a folder and ports of its own
  LOCAL_TOOLS      where tools are installed; default target/local-tools, or where the data folder's are
"""
UP = f"""\
Starts the backing services on loopback, and installs what is missing: Debian packages as root or by sudo, the rest
into a folder of its own. Prints `export NAME='value'` lines, so:

    eval "$(infra/local/up)"

points tests, and everything else in that shell, at them (among them the AWS_* variables that any S3 client reads).
What runs already is left alone, so a second run only prints.

parts:
{MEANINGS}
"""
DOWN = "Ends the backing services of a data folder, by their pids, and nothing else."
STATUS = "Shows what runs. The exit status is 1 unless everything does."
PART = "Kills (SIGKILL), stops, starts, freezes (SIGSTOP) or thaws (SIGCONT) one backing service, on its data."


class Set:
    """The parts of one data folder."""

    def __init__(self, place):
        self.place = place
        self.tools = Tools(place.tools)
        self.parts = [kind(place, self.tools) for kind in KINDS]

    def chosen(self, names):
        """The parts that were named, or all."""
        if not names:
            return self.parts
        known = {part.name: part for part in self.parts}
        for name in names:
            if name not in known:
                raise Failure(f"there is no part {name}: choose from {', '.join(known)}")
        return [part for part in self.parts if part.name in names]

    def servers(self):
        return [server for part in self.parts for server in part.servers()]

    def find(self, name):
        """What `part` controls: a server, or a part with all its servers."""
        for part in self.parts + self.servers():
            if part.name == name:
                return part
        raise Failure(f"there is no {name}: choose from {', '.join(server.name for server in self.servers())}")

    def start(self, parts):
        """Starts these together. What failed is told when the others are done."""
        self.place.make()
        self.tools.install(dict.fromkeys(need for part in parts for need in part.needs))
        with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
            starts = [pool.submit(part.start) for part in parts]
        errors = [start.exception() for start in starts if start.exception() is not None]
        for error in errors:
            if not isinstance(error, Failure):
                raise error
        if errors:
            raise Failure("\n".join(map(str, errors)))

    def stop(self, servers):
        """Asks all, then waits for each."""
        asked = [server for server in servers if server.ask_to_stop()]
        for server in asked:
            server.await_stop()
            say(f"stopped {server.name}")

    def environment(self, parts):
        """The variables of these parts, and of the set."""
        variables = {"LOCAL_DATA": self.place.data}
        for part in parts:
            variables.update(part.environment())
        return variables


def parser(description, epilog=VARIABLES):
    made = argparse.ArgumentParser(description=description, epilog=epilog,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", metavar="DIR", help="the data folder")
    return made


def up():
    options = parser(UP)
    options.add_argument("--only", metavar="PART,...", help="only these parts")
    arguments = options.parse_args()
    local = Set(Place(arguments.data))
    with local.place.lock():
        parts = local.chosen(arguments.only.split(",") if arguments.only else [])
        local.start(parts)
        for name, value in local.environment(parts).items():
            quoted = str(value).replace("'", "'\\''")
            print(f"export {name}='{quoted}'")


def down():
    options = parser(DOWN)
    options.add_argument("--wipe", action="store_true", help="delete the data folder too")
    arguments = options.parse_args()
    local = Set(Place(arguments.data))
    with local.place.lock():
        local.stop(local.servers())
        if arguments.wipe and local.place.data.exists():
            # A folder that `up` did not make is not deleted, whatever --data says.
            if not (local.place.data / "port-base").exists():
                raise Failure(f"{local.place.data} is no data folder of infra/local: it is left alone")
            shutil.rmtree(local.place.data)
            say(f"deleted {local.place.data}")


def status():
    local = Set(Place(parser(STATUS).parse_args().data))
    rows = [f"{'part':<16}{'port':>6}{'pid':>9}{'MiB':>6}  state"]
    every = True
    for server in local.servers():
        pid = server.process.pid()
        state = "stopped"
        if pid is not None:
            try:
                server.check()
                state = "answers"
            except (NotYet, OSError) as error:
                state = f"does not answer: {error}"
        every = every and state == "answers"
        rows.append(f"{server.name:<16}{server.port:>6}{pid or '-':>9}{server.process.memory_mib() or '-':>6}  {state}")
    # In one write, since `status | head` leaves early.
    sys.stdout.write("".join(f"{row}\n" for row in rows))
    sys.exit(0 if every else 1)


def part():
    options = parser(PART)
    options.add_argument("action", choices=("kill", "stop", "start", "freeze", "thaw"))
    options.add_argument("name", help="as infra/local/status lists them, or redis-cluster for all its nodes")
    arguments = options.parse_args()
    local = Set(Place(arguments.data))
    chosen = local.find(arguments.name)
    with local.place.lock():
        if arguments.action == "start":
            local.start([chosen])
        elif arguments.action == "stop":
            local.stop(chosen.servers())
        else:
            for server in chosen.servers():
                getattr(server, arguments.action)()


def main(command):
    """Runs a command; a Failure is a message and exit status 1."""
    # mongod wants many files; whoever starts it gives it what it may have.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # At once, not when every thread has finished; what has been started is found again by the next command.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os._exit(128 + number))
    try:
        command()
    except Failure as failure:
        sys.exit(f"infra/local/{os.path.basename(sys.argv[0])}: {failure}")
