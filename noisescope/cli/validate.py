"""noisescope validate DATASET: plant label errors, audit, and count how many were found."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from noisescope.cli.console import OUT, Terminal, print_json, print_lines
from noisescope.cli.launch import audited
from noisescope.cli.options import (
    ColumnsOption,
    DatasetArgument,
    DeviceOption,
    FormatOption,
    JsonOption,
    LimitOption,
    ModelOption,
    PairsOption,
    RunsDirOption,
    SplitOption,
)
from noisescope.errors import UsageError
from noisescope.storage.printable import printable


def validate(
    dataset: DatasetArgument = None,
    rate: Annotated[float, typer.Option(help="Share of labels to flip.")] = 0.2,
    rates: Annotated[
        str | None,
        typer.Option(help="Several shares, such as 0.1,0.2,0.3; the first is reported in full."),
    ] = None,
    kind: Annotated[str, typer.Option(help="uniform, hard, long or annotator.")] = "uniform",
    seeds: Annotated[int, typer.Option(help="Plantings of each share.", min=1)] = 3,
    truth: Annotated[
        Path | None,
        typer.Option(help="Plant nothing; compare with this truth file (pair_id, mislabelled)."),
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="A finished run to validate instead of a dataset.")
    ] = None,
    model: ModelOption = None,
    format: FormatOption = None,
    columns: ColumnsOption = None,
    pairs: PairsOption = None,
    split: SplitOption = None,
    limit: LimitOption = None,
    device: DeviceOption = "auto",
    runs_dir: RunsDirOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Plant label errors, audit, and report how many were found and how well p_flip is calibrated.

    Example: noisescope validate hh-rlhf --rates 0.1,0.2,0.3 --seeds 3
    """
    from noisescope.auditing.validation import Planned, validate_truth
    from noisescope.auditing.validation import validate as plant_and_find
    from noisescope.report.contents import gather, write_figures
    from noisescope.storage.run import find_run

    planned = Planned(_rates(rates, rate), kind, seeds)
    terminal = Terminal(quiet=json)
    if run is not None:
        found = find_run(run, runs_dir)
    else:
        typed: dict[str, Any] = {
            "model": model,
            "format": format,
            "columns": columns,
            "pairs": pairs,
        }
        typed |= {"split": split, "limit": limit}
        found = audited(dataset, typed | {"device": device}, runs_dir, terminal)
    terminal.note(f"run: {found.directory}")
    if truth is not None:
        result = validate_truth(found, truth)
    else:
        with terminal.stage(f"{len(planned.rates) * seeds} plantings") as progress:
            result = plant_and_find(found, planned, progress=progress)
    write_figures(gather(found).pictures, found.directory / "figures")
    if json:
        print_json(result)
    else:
        print_validation(result)
        place = str(found.directory)
        print_lines(
            figures=str(found.directory / "figures"), next=f"noisescope report {shlex.quote(place)}"
        )


def _rates(rates: str | None, rate: float) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in rates.split(",")) if rates else (rate,)
    except ValueError:
        raise UsageError(
            f"--rates {rates} must be numbers separated by commas, such as 0.1,0.2"
        ) from None


def print_validation(result: Mapping[str, Any]) -> None:
    """Print detectors, calibration, and the share of flips by decile (the paper's Fig. 3)."""
    from rich.table import Table
    from rich.text import Text

    from noisescope.cli.summary import ceiling

    OUT.print(Text(printable(result["said"])))
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("detector")
    for name in ("AUROC", "90 % interval", "average precision", "precision at the rate"):
        table.add_column(name, justify="right")
    rows = sorted(result["detectors"].items(), key=lambda item: -item[1]["auroc"])
    for name, row in rows:
        low, high = row["interval"]
        cells = (f"{row['auroc']:.3f}", f"{low:.3f} to {high:.3f}", f"{row['ap']:.3f}")
        style = "bold" if name == "p_flip" else ""
        table.add_row(name, *cells, f"{row['precision_at_rate']:.1%}", style=style)
    OUT.print(table)
    rate = result["flip_rate"]
    lines = {
        "base rate": f"{result['base_rate']:.1%} of {result['pairs']:,} labels are wrong",
        "expected AUROC": f"{result['expected_auroc']:.3f} before the truth was known; "
        f"{ceiling(result)}",
        "p_flip": f"ECE {result['ece']:.3f}, Brier {result['brier']:.3f}",
        "flip rate": f"{rate['estimate']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})",
    }
    if "expected" in rate:
        lines["flip rate"] += f"; {rate['expected']:.1%} including the dataset's own errors"
    lines["tenths"] = (
        f"rise strictly in {result['deciles_rise']:.0%} of the plantings (honest p_flip of this "
        f"size: {result['deciles_rise_expected']:.0%}); the last holds "
        f"{result['deciles'][-1] / result['base_rate']:.1f} times the base rate"
    )
    grid = Table.grid(padding=(0, 2))
    for name, text in lines.items():
        grid.add_row(Text(name, style="bold"), text)
    OUT.print(grid)
    print_deciles(result["deciles"], result["base_rate"])


def print_deciles(deciles: list[float], base: float) -> None:
    """Bars of the flipped share in each tenth of p_flip."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    for index, value in enumerate(deciles, 1):
        bar = Text("█" * round(40 * value), style="red" if value > base else "cyan")
        table.add_row(f"tenth {index:>2} of p_flip", bar, f"{value:.1%}")
    OUT.print(table)
