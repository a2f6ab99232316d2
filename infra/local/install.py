"""Installs what the parts need: Debian packages, a Python venv, Kafka's jars by Maven, azurite by npm."""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import place
from place import ROOT, say
from process import Failure

HERE = ROOT / "infra/local"
# azurite's dependencies want this; distributions older than 2025 have less, and then it comes as a wheel.
NODE_MAJOR = 20
# Kafka's class files are of Java 17.
JAVA_MAJOR = 17
# The first of them that the distribution has.
JAVA_PACKAGES = ("openjdk-21-jre-headless", "openjdk-17-jre-headless", "default-jre-headless")


def run(command, quiet=False, **options):
    """Runs a tool; what it prints goes to stderr, if quiet only when it fails."""
    try:
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if quiet else sys.stderr,
                             stderr=subprocess.STDOUT if quiet else None, **options)
    except OSError as error:
        raise Failure(f"{command[0]}: {error}") from error
    if ran.returncode != 0:
        said = f"\n{ran.stdout.decode(errors='replace')}" if quiet else ""
        raise Failure(f"{' '.join(map(str, command))}: exit status {ran.returncode}{said}")


def major(*command):
    """The major version that a command prints, or 0."""
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    found = re.search(r"(\d+)\.", text.stdout + text.stderr)
    return int(found[1]) if found else 0


def postgres_bin():
    """The folder of the newest PostgreSQL's programs, or None: Debian keeps them out of PATH."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    program = shutil.which("postgres")
    return pathlib.Path(program).parent if program else None


def has_venv():
    return subprocess.run(["/usr/bin/env", "python3", "-c", "import ensurepip, venv"],
                          capture_output=True).returncode == 0


def has_java():
    return major("java", "-version") >= JAVA_MAJOR


def has_node():
    return major("node", "--version") >= NODE_MAJOR and shutil.which("npm")


# What a part may need of the system: whether it is there, and the packages that bring it.
SYSTEM = {
    "redis": (lambda: shutil.which("redis-server") and shutil.which("redis-cli"), ["redis-server", "redis-tools"]),
    "postgres": (postgres_bin, ["postgresql"]),
    "venv": (has_venv, ["python3-venv"]),
    "java": (has_java, JAVA_PACKAGES),
    "maven": (lambda: shutil.which("mvn"), ["maven"]),
}
# What each tool of this module needs of the system.
NEEDS = {"redis": ["redis"], "postgres": ["postgres"], "python": ["venv"], "kafka": ["java", "maven"],
         "azurite": ["venv"]}


def apt_install(packages):
    """Installs Debian packages as root."""
    if not shutil.which("apt-get"):
        raise Failure(f"this is no Debian or Ubuntu; install by hand what they call: {' '.join(packages)}")
    root = [] if os.geteuid() == 0 else ["sudo"]
    if root and not shutil.which("sudo"):
        raise Failure(f"needs root, and there is no sudo, to install: {' '.join(packages)}")
    run([*root, "apt-get", "update", "-q"])
    run([*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y",
         "--no-install-recommends", *packages])


def first_available(packages):
    """The first of alternative packages that apt knows."""
    for package in packages:
        shown = subprocess.run(["apt-cache", "show", package], capture_output=True)
        if shown.returncode == 0 and shown.stdout:
            return package
    return packages[-1]


def system(tools):
    """Installs what these tools need of the system and is missing."""
    missing = []
    for need in dict.fromkeys(need for tool in tools for need in NEEDS[tool]):
        found, packages = SYSTEM[need]
        if not found():
            missing += [first_available(packages)] if need == "java" else packages
    if missing:
        say(f"installing {' '.join(missing)}")
        apt_install(missing)


class Tools:
    """The folder of the installed tools; each is installed once, and again when what it is made of changes."""

    def __init__(self, folder):
        self.folder = folder
        self.python = folder / "venv/bin/python"
        self.jars = folder / "kafka"
        self.azurite = folder / "azurite/node_modules/azurite/dist/src/blob/main.js"

    def install(self, tools):
        """Installs these tools where they are missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with place.lock(self.folder / "lock"):
            system(tools)
            for tool, source, make in (
                ("python", HERE / "requirements.txt", self._python),
                ("kafka", HERE / "kafka/pom.xml", self._kafka),
                ("azurite", HERE / "azurite/package-lock.json", self._azurite),
            ):
                if tool not in tools:
                    continue
                stamp = self.folder / f"{tool}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
                if not stamp.exists():
                    say(f"installing {tool}")
                    make(source)
                    stamp.touch()

    def _python(self, requirements):
        run(["/usr/bin/env", "python3", "-m", "venv", "--clear", self.folder / "venv"])
        run([self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements])

    def _kafka(self, pom):
        # The archive of loaded classes belongs to the jars.
        shutil.rmtree(self.jars, ignore_errors=True)
        run(["mvn", "-q", "-B", "-ntp", "-f", pom, f"-Dlibs={self.jars / 'libs'}", "package"])

    def _azurite(self, package_lock):
        folder = self.folder / "azurite"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(package_lock.parent / name, folder)
        run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=folder)

    def node(self):
        """The node that runs azurite."""
        return shutil.which("node")

    def mongod(self):
        """The server inside its wheel."""
        found = list(self.folder.glob("venv/lib/python3*/site-packages/fiftyone/db/bin/mongod"))
        if not found:
            raise Failure("mongo: there is no mongod in the venv: the wheel is for x86-64 Linux only")
        return found[0]
