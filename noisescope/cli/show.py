"""noisescope show PAIR_ID: one pair in full."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisescope.cli.console import OUT, print_json, print_lines, print_note, safe_block
from noisescope.cli.options import JsonOption, RunArgument, RunsDirOption
from noisescope.cli.resolve import note_run
from noisescope.errors import UsageError
from noisescope.storage.printable import printable

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.text import Text

#: Widest picture in a terminal, in characters.
WIDEST = 80


def show(
    pair_id: Annotated[
        str | None, typer.Argument(help="The pair, or a unique prefix of its id.")
    ] = None,
    run: RunArgument = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Instead of an id: 1 is the most suspicious pair.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the pictures of a pair to this PNG."),
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Show one pair: its prompt, both sides in full, and its scores.

    Example: noisescope show --rank 1
    """
    from noisescope.cli.resolve import run_word
    from noisescope.report.pictures import numbered
    from noisescope.scoring.answer import caution
    from noisescope.storage.run import find_run

    if rank is not None and run is None:
        pair_id, run = None, pair_id  # `show --rank 1 RUN`
    found = find_run(run, runs_dir)
    if (pair_id is None) == (rank is None):
        raise UsageError(
            "give one pair_id, or one --rank",
            hint="For example: noisescope show --rank 1",
        )
    pair = find_pair(found, pair_id if pair_id is not None else pair_of_rank(found, rank or 1))
    weak = caution(found) if "p_wrong" in pair else None
    if json:
        print_json(pair | {"caution": weak})
        return
    note_run(found, run, runs_dir)
    modality = found.manifest().get("modality", "text")
    keys = [pair["chosen"], pair["rejected"]]
    if modality == "vision":
        keys = []
        pair["prompt"] = numbered(pair["prompt"], keys)
    _print(pair)
    if weak:
        OUT.print(f"\n{printable(weak)}", markup=False, style="yellow")
    if modality != "text":
        _show_pictures(found, keys, output, whole=modality == "vision")
    if isinstance(place := pair.get("rank"), int):
        OUT.print()
        print_lines(next=_next(found, place, run_word(run, runs_dir, found.directory)))


def _next(run: Any, rank: int, flag: str) -> str:
    """The pair behind this one; behind the last, the whole run."""
    import pyarrow.parquet as pq

    if rank < pq.read_metadata(run.scores_path).num_rows:
        return f"noisescope show --rank {rank + 1}{flag}"
    return f"noisescope report {shlex.quote(str(run.directory))}"


def pair_of_rank(run: Any, rank: int) -> str:
    """The id of the pair at this place of the ranking. Raises UsageError where there is none."""
    import pyarrow.parquet as pq

    if not run.scores_path.is_file():
        raise UsageError(
            f"{run.directory} has no scores to rank by", hint="Make them: noisescope score DATASET"
        )
    found = pq.read_table(run.scores_path, columns=["pair_id"], filters=[("rank", "=", rank)])
    if not found.num_rows:
        raise UsageError(
            f"no pair of rank {rank:,} in {run.directory}", hint="noisescope show --rank 1"
        )
    return str(found.column("pair_id")[0].as_py())


def find_pair(run: Any, name: str) -> dict[str, Any]:
    """Find a pair by its id, or by a unique prefix of its id. Raises UsageError."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(run.pairs_path)
    ids = table.column("pair_id")
    rows = table.filter(pc.equal(ids, name))
    if not rows.num_rows:
        rows = table.filter(pc.starts_with(ids, name))
    if rows.num_rows != 1:
        what = f"{rows.num_rows:,} pairs begin with" if rows.num_rows else "no pair begins with"
        raise UsageError(
            f"{what} {name!r} in {run.directory}",
            hint='List them: noisescope query "SELECT pair_id FROM pairs LIMIT 20"',
        )
    pair: dict[str, Any] = rows.to_pylist()[0]
    if run.scores_path.is_file():
        chosen = [("pair_id", "=", pair["pair_id"])]
        scores = pq.read_table(run.scores_path, filters=chosen).to_pylist()
        pair |= scores[0] if scores else {}
    return pair


def _print(pair: dict[str, Any]) -> None:
    """Facts in one line, then prompt, chosen, rejected, each in full."""
    from rich.text import Text

    facts = [f"pair {pair['pair_id']}", f"{pair['source']} row {pair['row'] + 1}"]
    names = ("p_wrong", "p_flip", "p_mislabelled", "margin", "u", "contested", "rank")
    facts += [f"{name} {pair[name]:.4g}" for name in names if pair.get(name) is not None]
    facts += [f"annotator {pair['annotator']}"] if pair["annotator"] else []
    OUT.print(Text(safe_block(" · ".join(facts)), style="dim"))
    for name, title in (
        ("prompt", "prompt"),
        ("chosen", "chosen by the label"),
        ("rejected", "rejected by the label"),
    ):
        OUT.print(Text(f"\n{title}", style="bold"))
        OUT.print(Text(safe_block(pair[name])), soft_wrap=True)


def _show_pictures(run: Any, keys: list[str], path: Path | None, *, whole: bool) -> None:
    """The pictures of a pair or its prompt: in half blocks on a terminal of many colours, and as a
    PNG."""
    from noisescope.cli.report import images_of
    from noisescope.datasets.images import side_by_side
    from noisescope.storage.files import write_atomic
    from noisescope.storage.output import require_ending

    if path is not None:
        require_ending(path, ".png")
    many = OUT.console.is_terminal and OUT.console.color_system in ("truecolor", "256")
    images = images_of(run) if many or path else None
    if images is not None:
        picture = side_by_side(*map(images.get, keys), whole=whole)
        if many:
            OUT.print()
            OUT.print(half_blocks(picture, min(OUT.console.width, WIDEST)))
        if path is not None:
            write_atomic(path, lambda temporary: picture.save(temporary, "PNG"))
            order = "in order" if whole else "chosen left, rejected right"
            OUT.print(f"picture  {path} ({order})", markup=False, soft_wrap=True)
    if path is None:
        which = "the prompt's pictures" if whole else "both pictures"
        print_note(f"--output FILE.png writes {which} side by side")


def half_blocks(picture: Image, columns: int) -> Text:
    """A picture as characters whose upper and lower halves are two of its pixels."""
    from rich.text import Text

    lines = max(round(picture.height * columns / picture.width / 2), 1)
    small = picture.convert("RGB").resize((columns, 2 * lines))
    text = Text(no_wrap=True)
    for y in range(0, 2 * lines, 2):
        for x in range(columns):
            above, below = (
                f"#{small.crop((x, y + at, x + 1, y + at + 1)).tobytes().hex()}" for at in (0, 1)
            )
            text.append("▀", f"{above} on {below}")
        text.append("\n" if y < 2 * lines - 2 else "")
    return text
