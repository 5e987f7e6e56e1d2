"""Read the prompts of an evaluation: a text file, a table with a `prompt` column, or a dataset.

    read_prompts("prompts.txt", modality="text", limit=200, seed=0)

Repeats are dropped. `limit` keeps a sample that is a function of (seed, prompt) and does not
depend on the order of the prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.datasets.adapters.vision import media_of
from noisescope.errors import DataError
from noisescope.evaluate.comparison import Prompt
from noisescope.pairs import Message, Modality, digest

if TYPE_CHECKING:
    from noisescope.pairs import PreferenceDataset
    from noisescope.storage.workspace import Workspace

#: Endings of tables that may contain only prompts.
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
ALONE = "prompt"
LONGEST = 100_000


@final
@dataclass(frozen=True)
class Prompts:
    """The kept prompts, the number of distinct ones, and their source."""

    kept: tuple[Prompt, ...]
    distinct: int
    source: str

    @property
    def fingerprint(self) -> str:
        """20 hex digits over the kept prompts, in any order."""
        return digest("prompts", *sorted(prompt.key for prompt in self.kept))


def read_prompts(
    source: str,
    *,
    modality: Modality,
    limit: int | None = None,
    seed: int = 0,
    split: str | None = None,
    workspace: Workspace | None = None,
    generated: bool = True,
) -> Prompts:
    """Read a file of prompts, or the prompts of a preference dataset. Raises DataError.

    Unless outputs are `generated` from them, prompts of texts may show pictures.
    """
    path = Path(source).expanduser()
    found = _alone(path, modality) if path.is_file() else None
    resolved = str(path)
    if found is None:
        from noisescope.datasets import load

        dataset = load(source, split=split, workspace=workspace)
        shown = dataset.modality == "vision" and modality == "text"
        if dataset.modality != modality and not (shown and not generated):
            alone = "Compare the models on labels alone: --labelled instead of --judge."
            raise DataError(
                f"{source} contains {dataset.modality} pairs, and the models make {modality}s",
                hint=alone if shown else "Give prompts of the same kind with --prompts.",
            )
        found, resolved = of_dataset(dataset), dataset.resolved
    return sample(found, limit, seed, resolved)


def sample(prompts: Iterable[Prompt], limit: int | None, seed: int, source: str) -> Prompts:
    """Draw at most `limit` distinct prompts by (seed, prompt). Raises DataError for none."""
    distinct = list({prompt.key: prompt for prompt in prompts if prompt.text.strip()}.values())
    if not distinct:
        raise DataError(
            f"{source} contains no prompt", hint="Write one prompt per line, or a prompt column."
        )
    order = sorted(distinct, key=lambda prompt: digest("sample", str(seed), prompt.key))
    return Prompts(tuple(order[:limit]), len(distinct), source)


def of_dataset(dataset: PreferenceDataset) -> list[Prompt]:
    """Return the prompts of a preference dataset; its labels are not used."""
    columns = (dataset.table.column(name).to_pylist() for name in ("prompt", "turns"))
    return [_prompt(text, turns) for text, turns in zip(*columns, strict=True)]


def _prompt(text: str, turns: Sequence[dict[str, str]] | None) -> Prompt:
    messages = tuple(Message(turn["role"], turn["content"]) for turn in turns or ())
    return Prompt(text, messages or None)


def _alone(path: Path, modality: Modality) -> list[Prompt] | None:
    """Read a .txt, or a table with a `prompt` column and no preferences; else return None.

    Raises DataError for unreadable prompts, and for those of texts that show pictures.
    """
    if path.suffix == ".txt":
        try:
            text = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}", hint="Save it as UTF-8.") from error
        return [Prompt(line.strip()[:LONGEST]) for line in text.splitlines()]
    if path.suffix not in TABLES:
        return None
    rows = _rows(path)
    if rows is None:
        return None
    bad = [number for number, row in enumerate(rows) if not _readable(row.get(ALONE))]
    if bad:
        raise DataError(
            f"{path}: {len(bad):,} rows have no readable prompt, first row {bad[0] + 1}",
            hint="A prompt is a text, or a list of messages with role and content.",
        )
    if modality == "text" and (shown := media_of(rows, (path.parent, path.with_suffix("")))):
        raise DataError(
            f"{path}: its prompts may show what {', '.join(shown)} holds, and the models read text",
            hint="Leave that column out to compare the models on the texts alone.",
        )
    return [_of_value(row[ALONE]) for row in rows]


def _readable(value: object) -> bool:
    if isinstance(value, str):
        return True
    turns = value if isinstance(value, list) else []
    return bool(turns) and all(
        isinstance(turn, dict)
        and isinstance(turn.get("content"), str)
        and isinstance(turn.get("role"), str)
        for turn in turns
    )


def _of_value(value: Any) -> Prompt:
    if isinstance(value, str):
        return Prompt(value)
    from noisescope.datasets.conversations import messages, rendered

    turns = messages({ALONE: value}, ALONE)
    return Prompt(rendered(turns), turns)


def _rows(path: Path) -> list[dict[str, Any]] | None:
    """Read the rows of a table with `prompt`, without `chosen` and `rejected`; else None."""
    from noisescope.datasets.readers import read_file

    rows: list[dict[str, Any]] = []
    names: set[str] = set()
    for row in read_file(path, path.name):
        rows.append(row.values or {})
        names |= rows[-1].keys()
        if names & {"chosen", "rejected"}:
            return None
    return rows if ALONE in names else None
