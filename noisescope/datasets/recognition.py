"""Which adapter a dataset needs: the registry, and the choice from columns and sample rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from noisescope.datasets.adapter import Adapter
from noisescope.datasets.columnar import Columnar
from noisescope.datasets.hh_rlhf import HHRLHF
from noisescope.datasets.hpdv2 import HPDv2Test, HPDv2Train
from noisescope.datasets.image_folder import ImageFolder
from noisescope.datasets.image_reward import ImageRewardGroup, ImageRewardPair
from noisescope.datasets.pick_a_pic import PickAPic
from noisescope.datasets.readers import NO_ROWS, Row
from noisescope.datasets.trl import TRL
from noisescope.datasets.trl_vision import refuse_vision
from noisescope.datasets.ultrafeedback import UltraFeedback
from noisescope.errors import DataError, UsageError

#: `--format` choices. Of several that match, the one with the most required columns is taken.
ADAPTERS: dict[str, Adapter] = {
    "hh_rlhf": HHRLHF(),
    "ultrafeedback": UltraFeedback(),
    "ultrafeedback_argilla": UltraFeedback(
        name="ultrafeedback_argilla", scores=("chosen-rating", "rejected-rating")
    ),
    "trl": TRL(),
    "columnar": Columnar(),
    "pick_a_pic": PickAPic(),
    "hpdv2": HPDv2Train(),
    "hpdv2_test": HPDv2Test(),
    "image_reward": ImageRewardGroup(),
    "image_reward_train": ImageRewardGroup(
        name="image_reward_train", images="generations", ranks="ranking"
    ),
    "image_reward_pair": ImageRewardPair(),
    "image_folder": ImageFolder(),
    "image_columnar": ImageFolder(name="image_columnar", sides=("chosen", "rejected")),
}

#: What most people want who meet the list of formats for the first time.
PLAINEST = (
    "text needs prompt, chosen, rejected; pictures prompt, chosen_image, rejected_image. "
    "A file that has the columns of a format above and is read otherwise: --format NAME."
)
#: A format of so few columns is near to anything.
FEWEST = 2
#: Decodable rows looked at to recognise a format.
SAMPLE_ROWS = 20


def recognise(
    rows: Iterable[Row], *, format: str | None = None, said: str = "the dataset"
) -> tuple[Adapter, Iterator[Row]]:
    """Return (adapter, all the rows again). Raises DataError where none or several fit."""
    if format is not None:
        return _named(format), iter(rows)
    stream = iter(rows)
    ahead: list[Row] = []
    samples: list[Row] = []
    for row in stream:
        ahead.append(row)
        if row.values is not None:
            samples.append(row)
        if len(samples) == SAMPLE_ROWS:
            break
    if not ahead:
        raise DataError(f"{said}: holds no rows", hint=NO_ROWS)
    if not samples:
        first = "; ".join(f"{row.source}:{row.number} ({row.trouble})" for row in ahead[:5])
        raise DataError(
            f"{said}: none of its {len(ahead):,} rows can be decoded: {first}",
            hint="Is its ending right? A .jsonl file holds one UTF-8 JSON object a line.",
        )
    return _best(samples, said), chain(ahead, stream)


def _named(format: str) -> Adapter:
    name = format.strip().lower().replace("-", "_")
    if name not in ADAPTERS:
        raise UsageError(f"--format {format}: no such format", hint=f"One of: {_formats()}.")
    return ADAPTERS[name]


def _best(samples: Sequence[Row], said: str) -> Adapter:
    values = [row.values for row in samples if row.values is not None]
    columns = list(dict.fromkeys(name for row in values for name in row))
    refuse_vision(columns, values, said)
    fits = [adapter for adapter in ADAPTERS.values() if adapter.matches(columns, values)]
    most = max((len(adapter.columns) for adapter in fits), default=0)
    best = [adapter for adapter in fits if len(adapter.columns) == most]
    if len(best) == 1:
        return best[0]
    found = ", ".join(map(str, columns)) or "none"
    if not best and (near := _nearest(columns)):
        raise DataError(
            f"{said}: no known format fits its columns ({found}); nearest is {near}",
            hint="Add or rename that column. `noisescope datasets` lists the formats.",
        )
    wanted = "".join(f"\n  {adapter.name}: {_wants(adapter)}" for adapter in best or _all())
    what = "several formats fit" if best else "no known format fits"
    choice = "Choose with --format NAME." if best else "Rename the columns: " + PLAINEST
    raise DataError(
        f"{said}: {what} its columns ({found}). Formats and their columns:{wanted}", hint=choice
    )


def _nearest(columns: Sequence[str]) -> str:
    """The formats that lack one column and no more, as `columnar without rejected`, or ''."""
    lacking = {
        adapter.name: missing[0]
        for adapter in ADAPTERS.values()
        if len(missing := [name for name in adapter.columns if name not in columns]) == 1
        and len(adapter.columns) > FEWEST
    }
    most = max((len(ADAPTERS[name].columns) for name in lacking), default=0)
    best = {name: lacking[name] for name in lacking if len(ADAPTERS[name].columns) == most}
    return " or ".join(f"{name} without {column}" for name, column in best.items())


def _all() -> list[Adapter]:
    return list(ADAPTERS.values())


def _wants(adapter: Adapter) -> str:
    return " ".join((*adapter.columns, *(f"[{name}]" for name in adapter.optional)))


def _formats() -> str:
    return ", ".join(ADAPTERS)
