"""noisescope validate DATASET: plant label errors, audit, compare claims with the truth."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from noisescope.cli import completion
from noisescope.cli.console import OUT, Terminal, print_json, print_lines
from noisescope.cli.launch import audited, finished
from noisescope.cli.options import (
    ColumnsOption,
    DatasetOrRunArgument,
    DeviceOption,
    FormatOption,
    JsonOption,
    LimitOption,
    ModelOption,
    PairsOption,
    RunsDirOption,
    SplitOption,
)
from noisescope.datasets.flip.kinds import KINDS
from noisescope.errors import UsageError
from noisescope.storage.printable import printable


def validate(
    context: typer.Context,
    target: DatasetOrRunArgument = None,
    rate: Annotated[float, typer.Option(help="Share of labels to flip.")] = 0.2,
    rates: Annotated[
        str | None,
        typer.Option(help="Several shares, such as 0.1,0.2,0.3; the first is reported in full."),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Which labels are wrong: {', '.join(KINDS)}, or all of these that the dataset "
            "can have. Repeat it for several.",
            show_default="uniform",
            autocompletion=completion.among(*KINDS, "all"),
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Plantings of each share and kind.", min=1)] = 3,
    gold: Annotated[
        Path | None,
        typer.Option(
            help="Correct the labels by this truth file (pair_id, mislabelled), then plant."
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="Plant nothing; compare with this truth file (pair_id, mislabelled)."),
    ] = None,
    details: Annotated[
        bool, typer.Option("--details", help="Add all detectors, calibration and tenths.")
    ] = False,
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
    """Plant label errors, audit, and compare what the audit claims with the truth.

    Example: noisescope validate hh-rlhf --kind uniform --kind prompt --rate 0.2
    """
    from noisescope.auditing.validation import Planned, validate_truth
    from noisescope.auditing.validation import validate as plant_and_find
    from noisescope.report.contents import gather, write_figures
    from noisescope.storage.workspace import find_workspace

    if truth is not None:
        _refuse_planting(context)
    planned = Planned(_rates(rates, rate), tuple(kind or ("uniform",)), seeds)
    terminal = Terminal(quiet=json)
    typed: dict[str, Any] = {"model": model, "format": format, "columns": columns, "pairs": pairs}
    typed |= {"split": split, "limit": limit, "device": device}
    found = finished(target, find_workspace(), runs_dir) or audited(
        target, typed, runs_dir, terminal
    )
    terminal.note(f"run: {found.directory}")
    if truth is not None:
        result = validate_truth(found, truth)
    else:
        with terminal.stage("planting errors and auditing again") as progress:
            result = plant_and_find(found, planned, gold=gold, progress=progress)
    write_figures(gather(found).pictures, found.directory / "figures")
    if json:
        print_json(result)
    else:
        print_validation(result, details=details)
        place = str(found.directory)
        print_lines(
            figures=str(found.directory / "figures"), next=f"noisescope report {shlex.quote(place)}"
        )


def _refuse_planting(context: typer.Context) -> None:
    """Raise UsageError for options about planting, beside --truth."""
    given = [
        f"--{name}"
        for name in ("rate", "rates", "kind", "seeds", "gold")
        if (stated := context.get_parameter_source(name)) and stated.name == "COMMANDLINE"
    ]
    if given:
        raise UsageError(
            f"--truth plants nothing, so it takes no {', '.join(given)}",
            hint="To plant errors in labels that the file corrects, use --gold instead of --truth.",
        )


def _rates(rates: str | None, rate: float) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in rates.split(",")) if rates else (rate,)
    except ValueError:
        raise UsageError(
            f"--rates {rates} must be numbers separated by commas, such as 0.1,0.2"
        ) from None


def print_validation(result: Mapping[str, Any], *, details: bool = False) -> None:
    """Print the verdict, claims beside the truth, and with `details` the first planting in full."""
    from rich.text import Text

    from noisescope.cli.summary import ceiling

    cards = result.get("by_rate", [result])
    OUT.print(Text(printable(result["said"] if len(cards) == 1 else _counted(cards))))
    OUT.print(Text(printable(result["verdict"] if len(cards) == 1 else _summed(cards))))
    _print_claims(cards)
    for one in result.get("impossible", []):
        OUT.print(Text(printable(f"{one['kind']}: not planted: {one['reason']}")))
    if result.get("kind", "uniform") == "uniform":
        measured = result["detectors"]["p_wrong"]["auroc"]
        text = f"AUROC of p_wrong {measured:.3f}; expected of planted uniform flips "
        OUT.print(Text(f"{text}{result['expected_auroc']:.3f}, {ceiling(result)}"))
    if details:
        print_details(result)


def _counted(cards: Sequence[Mapping[str, Any]]) -> str:
    """What was planted, if it is more than one kind or rate."""
    rates = ", ".join(dict.fromkeys(f"{card['rate']:.0%}" for card in cards))
    return (
        f"Planted: {rates} of the labels were flipped, {len(cards)} times differently, then looked "
        "for without knowing which."
    )


def _summed(cards: Sequence[Mapping[str, Any]]) -> str:
    """How often the claims cover the truth, over all kinds and rates."""
    parts = []
    for name, words in _CLAIMS.items():
        covered = sum(card["claims"][name]["covers"] == 1 for card in cards)
        parts.append(f"{words} for {covered} of {len(cards)}")
    return f"The claims cover the truth: {', '.join(parts)}."


#: Claims in the result, and in words.
_CLAIMS = {
    "expected_hits": "expected hits",
    "flip_rate": "flip rate",
    "wrong_share": "share of wrong labels",
}


def _print_claims(cards: Sequence[Mapping[str, Any]]) -> None:
    """One row a kind: what was found, and each claim, marked if it does not cover the truth."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    claims = cards[0]["claims"]
    for name in ("kind", "wrong", "AUROC", "found", "expected", "flip rate", "share wrong"):
        table.add_column(name, justify="left" if name == "kind" else "right", no_wrap=True)
    for card in cards:
        claims = card["claims"]
        expected = claims["expected_hits"]
        low, high = expected["low"], expected["high"]
        table.add_row(
            card.get("kind", "truth"),
            f"{claims['planted_share']:.1%}",
            f"{card['detectors']['p_wrong']['auroc']:.3f}",
            f"{claims['hits']:,.0f} ({claims['hits'] / claims['planted']:.0%})",
            f"{low:,.0f}-{high:,.0f}{_mark(expected)}",
            *(_between(claims[name]) for name in ("flip_rate", "wrong_share") if name in claims),
        )
    OUT.print(table)
    notes = ["found and expected count wrong labels among as many of the worst pairs as are wrong"]
    if any(
        _mark(card["claims"][name]) for card in cards for name in _CLAIMS & card["claims"].keys()
    ):
        notes.append("* does not cover the truth")
    if claims["own_errors"]:
        (low, high), planted = claims["wrong_share"]["truth"], claims["planted_share"]
        notes.append(
            f"the data has errors of its own: by the audit before planting, {low:.1%} to "
            f"{high:.1%} of the labels are wrong with the planted {planted:.1%}; expected includes "
            "its own errors, found does not"
        )
    OUT.print(Text("; ".join(notes), style="dim"))


def _mark(claim: Mapping[str, Any]) -> str:
    """A star if a claim does not cover the truth in every planting."""
    return "" if claim["covers"] == 1 else "*"


def _between(claim: Mapping[str, Any]) -> str:
    return f"{100 * claim['low']:.0f}-{100 * claim['high']:.0f}%{_mark(claim)}"


def print_details(result: Mapping[str, Any]) -> None:
    """Print detectors, calibration, and the share of errors by decile (the paper's Fig. 3)."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("detector")
    for name in ("AUROC", "90 % interval", "average precision", "precision at the rate"):
        table.add_column(name, justify="right")
    rows = sorted(result["detectors"].items(), key=lambda item: -item[1]["auroc"])
    for name, row in rows:
        low, high = row["interval"]
        cells = (f"{row['auroc']:.3f}", f"{low:.3f} to {high:.3f}", f"{row['ap']:.3f}")
        style = "bold" if name == "p_wrong" else ""
        table.add_row(name, *cells, f"{row['precision_at_rate']:.1%}", style=style)
    OUT.print(table)
    lines = {
        "p_flip": f"ECE {result['ece']:.3f}, Brier {result['brier']:.3f}",
        "p_wrong": f"ECE {result['ece_wrong']:.3f}",
        "tenths": f"rise strictly in {result['deciles_rise']:.0%} of the plantings (honest p_flip "
        f"of this size: {result['deciles_rise_expected']:.0%}); the last has "
        f"{result['deciles'][-1] / result['base_rate']:.1f} times the share of all pairs",
    }
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
