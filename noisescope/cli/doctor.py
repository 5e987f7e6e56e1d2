"""noisescope doctor: versions, device, speed, disk and Hub of this machine, and any problem."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import final

import typer

from noisescope.cli.console import OUT, print_json, print_lines
from noisescope.cli.options import JsonOption, RunsDirOption
from noisescope.storage.files import TEMPORARY_PREFIX
from noisescope.storage.printable import printable

#: Libraries an audit leans on, as named on the package index.
LIBRARIES = (
    "torch",
    "transformers",
    "diffusers",
    "datasets",
    "accelerate",
    "peft",
    "pyarrow",
    "duckdb",
    "numpy",
    "scipy",
)


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report, with advice if `ok` is false."""

    name: str
    value: str
    ok: bool = True
    advice: str = ""


def examine(runs_directory: Path) -> list[Finding]:
    """Every finding, cheapest first. Reaches out to the Hub unless HF_HUB_OFFLINE is set."""
    return [
        Finding("python", platform.python_version()),
        *(_library(name) for name in LIBRARIES),
        *_machine(),
        *_torch(),
        _disk(runs_directory),
        _cache(runs_directory),
        _leftovers(runs_directory),
        _workspace(),
        _hub(),
    ]


def _library(name: str) -> Finding:
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", ok=False, advice=f"pip install {name}")


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    findings = [Finding("cores", str(cores))]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        findings.append(Finding("memory", f"{memory / 2**30:.1f} GiB"))
    return findings


def _torch() -> list[Finding]:
    """Device and the speed of its matrix products, which bounds every forward pass."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return [
            Finding("device", f"torch does not load: {error}", ok=False, advice="reinstall torch")
        ]
    from noisescope.models.device import matmul_rate, pick_device

    device = pick_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    rates = {kind: matmul_rate(device, kind) for kind in (torch.float32, torch.bfloat16)}
    speed = ", ".join(
        f"{str(kind).removeprefix('torch.')} {rate / 1e9:,.1f} GFLOP/s"
        for kind, rate in rates.items()
    )
    if max(rates.values()) < SLOW:
        speed += ": slow, perhaps other programs are using this machine"
    return [Finding("device", name), Finding("matrix products", speed)]


#: FLOP/s below which an audit takes hours where others take minutes.
SLOW = 1e10


def _disk(runs_directory: Path) -> Finding:
    place = runs_directory if runs_directory.exists() else Path()
    free = shutil.disk_usage(place).free
    enough = free > 2 * 2**30
    return Finding("free disk", f"{free / 2**30:.1f} GiB", enough, "free some disk space")


def _cache(runs_directory: Path) -> Finding:
    parts = [path for path in (runs_directory / ".cache").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in parts)
    return Finding("feature cache", f"{runs_directory / '.cache'}: {size / 2**20:,.0f} MiB")


def _leftovers(runs_directory: Path) -> Finding:
    """Count temporary files; whether one is still being written cannot be seen from here."""
    name = f"{TEMPORARY_PREFIX}*"
    beside = [*Path().glob(name), *Path("exports").glob(name)]
    found = {path.resolve() for path in (*beside, *runs_directory.rglob(name))}
    if not found:
        return Finding("interrupted writes", "none")
    message = (
        f"{len(found)} temporary files, such as {min(found)}; they hold no results and can be "
        "removed while nothing runs"
    )
    return Finding("interrupted writes", message)


def _workspace() -> Finding:
    from noisescope.errors import NoisescopeError
    from noisescope.storage.workspace import find_workspace

    try:
        workspace = find_workspace()
    except NoisescopeError as error:
        return Finding("workspace", error.message, ok=False, advice=error.hint or "")
    return Finding("workspace", str(workspace.root) if workspace else "none (no noisescope.toml)")


def _hub() -> Finding:
    """Check once, for at most three seconds, whether the Hugging Face Hub answers."""
    import urllib.error
    import urllib.request

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding("hub", "switched off by HF_HUB_OFFLINE; local paths only")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=3):
            return Finding("hub", f"{endpoint} answers")
    except urllib.error.HTTPError:
        return Finding("hub", f"{endpoint} answers")
    except (OSError, ValueError) as error:
        return Finding(
            "hub",
            f"{endpoint} cannot be reached ({error})",
            ok=False,
            advice="use local paths for datasets and models, or set HF_HUB_OFFLINE=1",
        )


def doctor(
    runs_dir: RunsDirOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Show versions, device, speed, cache and network. Exits with 2 if there is a problem.

    Example: noisescope doctor
    """
    from rich.table import Table
    from rich.text import Text

    from noisescope.storage.workspace import find_workspace

    findings = examine(runs_dir)
    if json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for finding in findings:
            mark = Text("ok", style="green") if finding.ok else Text("!!", style="bold red")
            table.add_row(mark, finding.name, Text(printable(finding.value)))
            if not finding.ok and finding.advice:
                table.add_row("", "", Text(f"→ {printable(finding.advice)}", style="yellow"))
        OUT.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(2)
    if not json:
        print_lines(next="noisescope datasets" if find_workspace() else "noisescope sample")
