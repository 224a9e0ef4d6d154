"""What is measured and how it is kept: CPU and memory of processes, where and with what, one JSON line per run.

CPU time per instance is the figure to trust; wall clock rates depend on who else uses the machine. Peers run in one
run, interleaved, and the ratio of the medians is what to compare across machines and over time.
"""

from __future__ import annotations

import os
import platform
import resource
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import orjson

from streamal.evaluate.stream import Row, read

HERE: Final = Path(__file__).parent
HISTORY: Final = HERE / "history"
STREAM: Final = HERE.parent / "streamal" / "streams" / "electricity.csv.gz"
TICK: Final = os.sysconf("SC_CLK_TCK")
PACKAGES: Final = ("streamal", "river", "kafka-python", "orjson", "crc32c")
MEBI: Final = 1024.0

Figures = dict[str, float]


class Spread(NamedTuple):
    """The median of some repetitions, between the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of values.

        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, least=1.0, most=3.0)
        """
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.least:.2f}..{self.most:.2f}]"


def electricity(stream: Path) -> list[Row]:
    """Return the rows of the stream; the one that ships with the package has 45,312."""
    return list(read(stream, label="direction"))


def rounds(rows: Sequence[Row], count: int) -> Iterator[tuple[int, Row]]:
    """Yield `count` rows with their numbers, from the beginning again as often as needed."""
    for number in range(count):
        yield number, rows[number % len(rows)]


def own_peak() -> float:
    """Return the peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBI


def cpu_seconds(pid: int) -> float:
    """Return the user and system time that all threads of a process have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory(pid: int) -> tuple[float, float]:
    """Return the resident memory of a process, now and at its peak, in MiB."""
    found = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(found["VmRSS"].split()[0]) / MEBI, int(found["VmHWM"].split()[0]) / MEBI


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line.

    >>> slope([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)])
    2.0
    """
    x = sum(at for at, _ in points) / len(points)
    y = sum(value for _, value in points) / len(points)
    return sum((at - x) * (value - y) for at, value in points) / sum((at - x) ** 2 for at, _ in points)


def surroundings(*arguments: str) -> dict[str, Any]:
    """Return where and with what the figures are made: processor, cores, load, versions, commit."""
    return {
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def commit() -> str:
    """Return the commit that is measured, with a plus when files were changed since; `unknown` outside of a clone."""
    with suppress(OSError, subprocess.CalledProcessError):
        told = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+"]
        return subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"


def processor() -> str:
    """Return the processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def keep(case: str, made: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Path:
    """Append the results of a case to its history and return the file."""
    HISTORY.mkdir(exist_ok=True)
    path = HISTORY / f"{case.replace('/', '-')}.jsonl"
    with path.open("ab") as file:
        line = {"case": case, **made, "results": results}
        file.write(orjson.dumps(line, default=list, option=orjson.OPT_APPEND_NEWLINE))
    return path
