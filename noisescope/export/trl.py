"""Export a preference dataset in TRL's format, with the columns `weight` and `gamma`.

    standard         prompt, chosen, rejected: texts
    conversational   the same as message lists, if the source's prompts are conversations

and pair_id, weight, gamma and p_flip; instead of gamma `belief`, the log odds that the label is
right, where the weights are "soft" or "margin", and `prior` where they are "prior". TRL
concatenates prompt and response, so a plain prompt without a space before its responses gets the
empty line that the audit judged it with.
`noisescope.training.trl.AdaptiveDPOTrainer` trains with these columns, TRL's trainer without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisescope.datasets.conversations import TOOLS
from noisescope.datasets.flip.plan import Float
from noisescope.errors import UsageError
from noisescope.export.clean import count
from noisescope.export.removal import DROP, FLIP, Actions, CleanPolicy, decide
from noisescope.export.weights import facts_of, metadata_of, refuse_even
from noisescope.models.tokenize import GAP
from noisescope.scoring.run_scores import RunScores
from noisescope.scoring.weigh import BELIEVED, weigh
from noisescope.storage.files import write_atomic
from noisescope.storage.output import claim, write_directory

if TYPE_CHECKING:
    import pyarrow as pa

#: Column of a Gamma that is what the policy learns, not a correction.
BELIEF = "belief"


def export_trl(
    scores: RunScores, out: Path, policy: CleanPolicy | None = None, scheme: str = "p_wrong"
) -> dict[str, int]:
    """Write `out`: a .parquet file, or a directory for `datasets.load_from_disk`.

    Returns the counts of keep, drop and flip; without a policy every pair is kept. Raises
    UsageError for images (TRL has no trainer for them), for prompts that show some, and if `out`
    is not an export.
    """
    if scores.modality != "text":
        raise UsageError(
            "--format trl writes texts alone, and the pairs of this run have images",
            hint="Use --format clean or --format weights.",
        )
    policy = policy or CleanPolicy()
    actions, words = decide(scores, policy)
    counts = count(actions)
    facts = facts_of(scores, "trl", weight=scheme, policy=words, counts=counts)
    if out.suffix == ".parquet":
        claim(out)
        write_atomic(out, lambda path: write_trl(path, scores, actions, scheme, facts))
    else:
        write_directory(out, facts, lambda path: _save(path, scores, actions, scheme, facts))
    return counts


def write_trl(
    path: Path, scores: RunScores, actions: Actions, scheme: str, facts: Mapping[str, Any]
) -> None:
    """Write the dataset as one Parquet file, in batches."""
    import pyarrow.parquet as pq

    conversations = conversational(scores)
    flipped, p_flip = actions == FLIP, scores.columns["p_flip"]
    weight, gamma = weigh(scores, scheme, flipped)
    if scheme != "p_wrong" and not flipped.any():
        refuse_even(scheme, weight, gamma)
    named = {"prior": "prior"}.get(scheme, BELIEF) if scheme in BELIEVED else "gamma"
    numbers = {"weight": weight, named: gamma, "p_flip": np.where(flipped, 1 - p_flip, p_flip)}
    schema = trl_schema(conversations, conversations and has_tools(scores), tuple(numbers))
    schema = schema.with_metadata(metadata_of(facts))
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for table in _tables(scores, actions, schema, numbers):
            out.write_table(table)


def _save(
    path: Path, scores: RunScores, actions: Actions, scheme: str, facts: Mapping[str, Any]
) -> None:
    """Write the dataset as `datasets.save_to_disk` does."""
    import datasets

    plain = path / ".partial-rows.parquet"
    write_trl(plain, scores, actions, scheme, facts)
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        cache = path / ".partial-cache"
        read = datasets.Dataset.from_parquet(str(plain), cache_dir=str(cache))
        read.save_to_disk(str(path))
        del read
    finally:
        if shown:
            datasets.enable_progress_bars()
        plain.unlink()
        _remove(cache)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def conversational(scores: RunScores) -> bool:
    """Whether any prompt is a conversation; all are then written as conversations."""
    return any(batch.column(1).null_count < batch.num_rows for batch, _ in scores.pairs(["turns"]))


def has_tools(scores: RunScores) -> bool:
    """Whether any prompt begins with a list of tools (datasets/conversations.py)."""
    return any(
        turns and turns[0]["role"] == TOOLS
        for batch, _ in scores.pairs(["turns"])
        for turns in batch.column(1).to_pylist()
    )


def trl_schema(conversations: bool, tools: bool, numbers: tuple[str, ...]) -> pa.Schema:
    """Return the columns of a TRL export."""
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    side = pa.list_(turn) if conversations else pa.string()
    fields = [pa.field(name, side) for name in ("prompt", "chosen", "rejected")]
    fields += [pa.field("tools", pa.string())] * tools  # JSON, which TRL reads
    fields += [pa.field("pair_id", pa.string())]
    return pa.schema(fields + [pa.field(name, pa.float64()) for name in numbers])


def _tables(
    scores: RunScores, actions: Actions, schema: pa.Schema, numbers: Mapping[str, Float]
) -> Iterator[pa.Table]:
    """Yield batches of the pairs that are kept or flipped."""
    import pyarrow as pa

    for batch, at in scores.pairs(["prompt", "chosen", "rejected", "turns"]):
        kept = np.flatnonzero(actions[at] != DROP)
        if not len(kept):
            continue
        part = batch.take(pa.array(kept))
        flips = (actions[at[kept]] == FLIP).tolist()
        ids, prompts, chosen, rejected, turns = (c.to_pylist() for c in part.columns)
        for index, flip in enumerate(flips):
            if flip:
                chosen[index], rejected[index] = rejected[index], chosen[index]
        columns: list[Any]
        if not pa.types.is_string(schema.field("prompt").type):
            messages = [t or [_message("user", p)] for t, p in zip(turns, prompts, strict=True)]
            tools = [one[0]["content"] if one[0]["role"] == TOOLS else None for one in messages]
            messages = [one[t is not None :] for one, t in zip(messages, tools, strict=True)]
            columns = [
                messages,
                *([[_message("assistant", r)] for r in s] for s in (chosen, rejected)),
            ]
            columns += [tools] if "tools" in schema.names else []
        else:
            columns = [list(map(_spaced, prompts, chosen, rejected)), chosen, rejected]
        arrays = [
            pa.array(values, schema.field(i).type) for i, values in enumerate([*columns, ids])
        ]
        arrays += [pa.array(numbers[name][at[kept]], from_pandas=True) for name in numbers]
        yield pa.Table.from_arrays(arrays, schema=schema)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _spaced(prompt: str, chosen: str, rejected: str) -> str:
    """Append the gap that a prompt needs before both responses."""
    separated = prompt[-1:].isspace() or (chosen[:1].isspace() and rejected[:1].isspace())
    return prompt if separated or not prompt else prompt + GAP
