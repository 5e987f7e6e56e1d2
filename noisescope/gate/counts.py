"""Checks that count rows and pairs; exact, without replicas or intervals.

Near-duplicate prompts are found by MinHash, in linear time and 256 bytes per prompt. A prompt is
the set of its lower-case word triples (all words if fewer than three), of the first 512 words. 64
minimum hashes estimate the Jaccard similarity of two sets with standard error 0.05 at 0.8 (Broder
1997). Sixteen bands of four hashes give candidates: two prompts with similarity 0.8 share one with
probability 1 - (1 - .8^4)^16 > 0.999. Within a band a prompt is compared only with the first of its
bucket.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from noisescope.gate.input import DETAIL, Subject
from noisescope.gate.policy import Policy
from noisescope.gate.verdict import Result, Row

#: Estimated Jaccard similarity from which two prompts count as near duplicates.
SIMILAR = 0.8
HASHES, BANDS, WORDS = 64, 16, 512
_WORD = re.compile(r"\w+")
_RNG = np.random.default_rng(0x5EED)
#: Odd multipliers and offsets of the hash family h -> (a h + b) >> 32 on 64 bits.
_A = _RNG.integers(1, 1 << 63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_B = _RNG.integers(0, 1 << 63, HASHES, dtype=np.uint64)


def signature(prompt: str) -> NDArray[np.uint32]:
    """Compute 64 minimum hashes of a prompt's word triples, [64]; all ones without words."""
    words = _WORD.findall(prompt.lower())[:WORDS]
    if not words:
        return np.full(HASHES, 0xFFFFFFFF, np.uint32)
    triples = {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
    hashes = np.array([zlib.crc32(triple.encode("utf-8", "replace")) for triple in triples])
    mixed = hashes.astype(np.uint64)[:, None] * _A + _B  # modulo 2^64
    return np.asarray((mixed >> np.uint64(32)).min(axis=0), dtype=np.uint32)


def near_duplicate_mask(prompts: Sequence[str]) -> NDArray[np.bool_]:
    """Mark each distinct prompt [n] that is similar to an earlier one in some bucket."""
    signatures = np.empty((len(prompts), HASHES), np.uint32)
    for index, prompt in enumerate(prompts):
        signatures[index] = signature(prompt)
    near = np.zeros(len(prompts), bool)
    width = HASHES // BANDS
    for band in range(BANDS):
        rows = np.ascontiguousarray(signatures[:, band * width : (band + 1) * width])
        keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * width))).ravel()
        _, first, bucket = np.unique(keys, return_index=True, return_inverse=True)
        other = first[bucket]
        candidates = np.flatnonzero((other != np.arange(len(prompts))) & ~near)
        alike = (signatures[candidates] == signatures[other[candidates]]).mean(axis=1)
        near[candidates[alike >= SIMILAR]] = True
    return near


#: Rows shown with a failed check.
SHOWN = 10

_REPEATED = """
SELECT pair_id, source, row, prompt FROM (
    SELECT *, row_number() OVER (PARTITION BY content_id, chosen < rejected, annotator
                                 ORDER BY file_row_number) AS nth
    FROM read_parquet($pairs, file_row_number = true))
WHERE nth > 1 ORDER BY file_row_number
"""
_BOTH_WAYS = """
SELECT first(pair_id), first(source), first(row), first(prompt)
FROM (SELECT * FROM read_parquet($pairs, file_row_number = true) ORDER BY file_row_number)
GROUP BY content_id HAVING bool_or(chosen < rejected) AND bool_or(chosen > rejected)
ORDER BY min(file_row_number)
"""
#: U+FFFD, control characters, and UTF-8 once read as Latin-1 or Windows-1252.
BROKEN = "[\\x{FFFD}\\x00-\\x08\\x0B\\x0C\\x0E-\\x1F\\x7F]|\u00c3[\u0080-\u00bf]|\u00e2\u20ac"
_BROKEN = """
SELECT pair_id, source, row, prompt FROM read_parquet($pairs, file_row_number = true)
WHERE regexp_matches(prompt, $broken)
   OR ($texts AND (regexp_matches(chosen, $broken) OR regexp_matches(rejected, $broken)))
ORDER BY file_row_number
"""


def ties(subject: Subject, policy: Policy) -> Result | None:
    """Check the share of rows that are ties."""
    if policy.max_ties is None:
        return None
    count = int(subject.facts.get("rejected", {}).get("tie", 0))
    return _counted("ties", count, int(subject.facts["rows"]), policy.max_ties, "rows are ties")


def faults(subject: Subject, policy: Policy) -> Result | None:
    """Check the share of rows without a usable preference, except ties."""
    if policy.max_faults is None:
        return None
    rejected = {
        reason: count
        for reason, count in subject.facts.get("rejected", {}).items()
        if reason != "tie" and count
    }
    what = "rows have no usable preference"
    what += f" ({', '.join(f'{n:,} {reason}' for reason, n in rejected.items())})" * bool(rejected)
    rows = tuple(
        Row("", *_placed(str(example)))
        for example in subject.facts.get("rejected_examples", [])
        if "(tie" not in str(example)
    )
    total = sum(rejected.values())
    return _counted("faults", total, int(subject.facts["rows"]), policy.max_faults, what, rows)


def score_conflicts(subject: Subject, policy: Policy) -> Result | None:
    """Check the share of pairs whose scores in the dataset contradict the label."""
    if policy.max_score_conflicts is None or "contradicted" not in subject.facts:
        return None
    count, what = int(subject.facts["contradicted"]), "pairs have scores that contradict the label"
    return _counted("score_conflicts", count, len(subject), policy.max_score_conflicts, what)


def _placed(example: str) -> tuple[str, int, str]:
    """Parse an example of the form `source:row (reason)`, whose row counts from 1."""
    place, _, detail = example.partition(" (")
    source, _, row = place.rpartition(":")
    known = source and row.isdigit()
    return (source, max(int(row) - 1, 0), detail.rstrip(")")) if known else ("", 0, example)


def duplicates(subject: Subject, policy: Policy) -> Result | None:
    """Check the share of labels that the same annotator gave before to the same content."""
    if policy.max_duplicates is None:
        return None
    rows = _rows(subject, _REPEATED)
    what = "labels repeat an earlier one of the same annotator"
    return _counted("duplicates", len(rows), len(subject), policy.max_duplicates, what, rows)


def contradictions(subject: Subject, policy: Policy) -> Result | None:
    """Check the share of distinct contents that are labelled both ways."""
    if policy.max_contradictions is None:
        return None
    rows = _rows(subject, _BOTH_WAYS)
    counted = subject.rows_of("SELECT count(DISTINCT content_id) FROM read_parquet($pairs)")
    what = "contents are labelled both ways"
    limit = policy.max_contradictions
    return _counted("contradictions", len(rows), int(counted[0][0]), limit, what, rows)


def near_duplicates(subject: Subject, policy: Policy) -> Result | None:
    """Check the share of distinct prompts that are similar to another."""
    if policy.max_near_duplicates is None:
        return None
    found = subject.rows_of(
        "SELECT prompt, first(pair_id), first(source), first(row) FROM read_parquet($pairs) "
        "GROUP BY prompt ORDER BY prompt"
    )
    mask = near_duplicate_mask([prompt for prompt, *_ in found])
    rows = tuple(
        Row(pair_id, source, row, prompt[:DETAIL])
        for (prompt, pair_id, source, row), near in zip(found, mask, strict=True)
        if near
    )
    what = f"distinct prompts share {SIMILAR:.0%} of their word triples with another"
    return _counted(
        "near_duplicates", len(rows), len(found), policy.max_near_duplicates, what, rows
    )


def encoding_faults(subject: Subject, policy: Policy) -> Result | None:
    """Share of pairs with replacement or control characters, or text decoded twice."""
    if policy.max_encoding_faults is None:
        return None
    rows = _rows(subject, _BROKEN, broken=BROKEN, texts=subject.modality != "image")
    what = "pairs hold broken characters"
    return _counted("encoding", len(rows), len(subject), policy.max_encoding_faults, what, rows)


def _rows(subject: Subject, sql: str, **parameters: object) -> tuple[Row, ...]:
    return tuple(
        Row(pair_id, source, row, prompt[:DETAIL])
        for pair_id, source, row, prompt in subject.rows_of(sql, **parameters)
    )


def _counted(
    name: str, count: int, total: int, limit: float, what: str, rows: tuple[Row, ...] = ()
) -> Result:
    """Compare an exact share with its limit; rows are kept if it fails."""
    measured = count / total if total else 0.0
    failed = measured > limit
    return Result(
        name,
        "fail" if failed else "pass",
        f"{count:,} of {total:,} {what} ({measured:.1%})",
        measured,
        threshold=limit,
        rows=rows[:SHOWN] if failed else (),
    )
