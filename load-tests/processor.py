"""What processes cost: processor time by part, from /proc; used by the other scripts here."""

import os
import pathlib
import subprocess
from dataclasses import dataclass, field

from processes import ROOT

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass
class Cost:
    """Seconds of processor time until now: of a part's processes together, and of each of its threads; memory
    without what processes share, which would count several times."""

    seconds: float = 0.0
    threads: dict[int, float] = field(default_factory=dict)
    private_mb: float = 0.0

    def since(self, before: "Cost") -> tuple[float, float]:
        """What was used between the two: by all, and by the busiest thread."""
        busiest = max((used - before.threads.get(thread, 0.0) for thread, used in self.threads.items()), default=0.0)
        return self.seconds - before.seconds, busiest


def stat(path: pathlib.Path) -> tuple[int, float]:
    """The parent's pid, and the seconds used, of a process or a thread."""
    # The name, in parentheses, may hold spaces.
    words = path.read_text().rpartition(")")[2].split()
    return int(words[1]), (int(words[11]) + int(words[12])) / TICKS_PER_SECOND


def children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found.setdefault(stat(entry / "stat")[0], []).append(int(entry.name))
            except OSError:
                continue  # It has ended.
    return found


def cost(pids: list[int], tree: dict[int, list[int]]) -> Cost:
    """Of these processes and all that they started."""
    total, waiting = Cost(), list(pids)
    while waiting:
        pid = waiting.pop()
        waiting += tree.get(pid, [])
        place = pathlib.Path(f"/proc/{pid}")
        try:
            total.seconds += stat(place / "stat")[1]
            for thread in (place / "task").iterdir():
                total.threads[int(thread.name)] = stat(thread / "stat")[1]
            _, resident, shared, *_ = (place / "statm").read_text().split()
            total.private_mb += (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE") / 2**20
        except OSError:
            continue  # It has ended.
    return total


def costs(parts: dict[str, list[int]]) -> dict[str, Cost]:
    tree = children()
    return {name: cost(pids, tree) for name, pids in parts.items()}


def store_pids() -> dict[str, list[int]]:
    """The backing services that run, as `infra/local/status` lists them; the nodes of a cluster are one part."""
    status = subprocess.run([str(ROOT / "infra/local/status")], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[int]] = {}
    for line in status.splitlines()[1:]:
        name, _, pid, *_ = line.split()
        if pid.isdecimal():
            found.setdefault("redis-cluster" if name.startswith("redis-cluster") else name, []).append(int(pid))
    return found


def machine() -> tuple[float, float]:
    """Seconds of all cores since the start: used, and idle (also while a disk is awaited)."""
    words = [int(word) / TICKS_PER_SECOND for word in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = words[3] + words[4]
    return sum(words) - idle, idle
