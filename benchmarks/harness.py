"""Share arguments, machine facts, tables, targets and peer environments among the benchmarks.

    def run(options: Options) -> Report: ...
    if __name__ == "__main__":
        main(__doc__, run)

gives `python -m benchmarks.NAME [--quick] [--json FILE] [--peer-python PATH] [--data DIR]`.
Ours and the peer run in turn on the same machine; every number is printed with its machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from noisescope.storage.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Options:
    """Parsed command line of a benchmark."""

    quick: bool
    json: Path | None
    peer_python: Path | None
    data: Path
    model: str | None
    seed: int


@dataclass(frozen=True)
class Target:
    """A target beside its measurement. `met` is None if it could not be measured here."""

    name: str
    value: float | None
    target: str
    met: bool | None


@dataclass
class Report:
    """Rows to print (one dict a row), free facts for the JSON file, and the targets."""

    title: str
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)

    def at_least(self, name: str, value: float | None, bound: float) -> None:
        """Record the target `value >= bound`."""
        met = None if value is None else value >= bound
        self.targets.append(Target(name, value, f">= {bound:g}", met))

    def at_most(self, name: str, value: float | None, bound: float) -> None:
        """Record the target `value <= bound`."""
        met = None if value is None else value <= bound
        self.targets.append(Target(name, value, f"<= {bound:g}", met))


def machine() -> dict[str, Any]:
    """Return processor, cores, memory, load, accelerator and the versions that matter for speed."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for name in ("torch", "transformers", "numpy", "duckdb", "accelerate"):
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "torch" in facts:
        import torch

        facts["threads"] = torch.get_num_threads()
        facts["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return facts


def _processor() -> str:
    """Return the model name of the CPU if the system has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory_mib() -> float | None:
    """Return the highest resident set since the start or `reset_peak_memory`, in MiB.

    Linux: VmHWM. Not getrusage's ru_maxrss, which a child inherits from its parent through exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def reset_peak_memory() -> None:
    """Begin a new `peak_memory_mib`, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Measure a block: wall seconds in t["seconds"], CPU seconds in t["cpu"]."""
    taken: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield taken
    finally:
        taken["seconds"] = time.perf_counter() - wall
        taken["cpu"] = time.process_time() - cpu


def peer_python(options: Options, name: str, packages: Sequence[str]) -> Path:
    """Return the interpreter of the peer's own venv: given, else made once in the user's cache."""
    given = options.peer_python or os.environ.get("NOISESCOPE_PEER_VENV")
    if given:
        path = Path(given)
        return path / "bin" / "python" if path.is_dir() else path
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    home = cache / "noisescope" / "peers" / name
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        print(f"installing {' '.join(packages)} in {home}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (home / "complete").touch()
    return python


def run_peer(
    python: Path, script: Path, arguments: Mapping[str, Any], *, timeout: float | None = None
) -> dict[str, Any]:
    """Run `script` in another interpreter: JSON arguments on stdin, JSON on the last stdout line.

    Raises RuntimeError with the end of its stderr if it fails.
    """
    done = subprocess.run(
        [python, script],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    if done.returncode:
        raise RuntimeError(f"{script.name} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def shared_data() -> Path:
    """Return the folder of the development datasets: NOISESCOPE_SHARED, else ../shared/data."""
    named = os.environ.get("NOISESCOPE_SHARED")
    return Path(named) if named else ROOT.parent / "shared" / "data"


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print aligned columns; floats have four significant digits."""
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    print(f"\n{title}")
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def publish(report: Report, options: Options) -> None:
    """Print the report; write {machine, results, facts, targets} to the --json file."""
    facts = machine()
    print(f"{report.title}\n" + ", ".join(f"{key} {value}" for key, value in facts.items()))
    for title, rows in report.tables.items():
        print_table(title, rows)
    targets = [vars(target) for target in report.targets]
    print_table("targets", targets)
    if options.json:
        content = {
            "machine": facts,
            "results": report.tables,
            "facts": report.facts,
            "targets": targets,
        }
        write_atomic(options.json, json.dumps(content, indent=2, default=float) + "\n")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Build the parser of the arguments that every benchmark takes; `Options` holds them."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="within ten minutes on two cores")
    parser.add_argument("--json", type=Path, help="write machine, results and targets here")
    parser.add_argument("--peer-python", type=Path, help="interpreter or venv with the peer")
    parser.add_argument("--data", type=Path, default=shared_data(), help="development data")
    parser.add_argument("--model", default=os.environ.get("NOISESCOPE_MODEL"), help="local model")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def parse(description: str | None, argv: Sequence[str] | None = None) -> Options:
    """Parse the options from the command line."""
    return Options(**vars(parser(description).parse_args(argv)))


def main(description: str | None, run: Callable[[Options], Report]) -> None:
    """Parse, run, print."""
    options = parse(description)
    publish(run(options), options)
