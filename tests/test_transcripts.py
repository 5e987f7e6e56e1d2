"""Ids of plain transcripts at once: those of the parsed pairs, or left to the rows."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisescope.datasets.flip.pair_ids import plain_ids, table_ids
from noisescope.datasets.hh_rlhf import HHRLHF

TURNS = ["\n\nHuman:", "\n\nAssistant:", "\n\nHuman: a", "\n\nAssistant: b c"]
PIECES = st.sampled_from([*TURNS, "\n", " ", "x", "\u00a0", "é", "\x1c"])
PLAIN = "\n\nHuman: What?\n\nAssistant: This\nand that.\n\nHuman: Why?\n\nAssistant:"


def a_table(*rows: tuple[str | None, str | None]) -> pa.Table:
    schema = pa.schema([("chosen", pa.string()), ("rejected", pa.string())])
    return pa.Table.from_arrays([pa.array(side) for side in zip(*rows, strict=True)], schema=schema)


def parsed_id(chosen: str, rejected: str) -> str:
    return HHRLHF().parse({"chosen": chosen, "rejected": rejected})[0].content_id


@given(st.lists(PIECES, max_size=6).map("".join), st.lists(PIECES, max_size=3).map("".join))
def test_an_id_found_at_once_is_that_of_the_parsed_pair(opening: str, response: str) -> None:
    rows = [
        (f"{PLAIN} yes", f"{PLAIN} no"),
        (f"{opening}\n\nAssistant:{response}", f"{opening}\n\nAssistant: z"),
    ]
    first, second = plain_ids(a_table(*rows))
    assert first == parsed_id(*rows[0])
    assert second is None or second == parsed_id(*rows[1])


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (f"{PLAIN} yes", f"{PLAIN} yes"),
        (f"{PLAIN} yes\n\nHuman: b", f"{PLAIN} no"),
        (f"{PLAIN}\n\nHuman: b", f"{PLAIN} no"),
        (f"{PLAIN} no", f"{PLAIN} \n\nHuman: b"),
        (f"{PLAIN}", f"{PLAIN} no"),
        (f"{PLAIN} \N{GRINNING FACE}", f"{PLAIN} no"),
        (f" {PLAIN} yes", f" {PLAIN} no"),
        (f"{PLAIN} yes", PLAIN.replace("Why", "How") + " no"),
        ("Human: a\n\nAssistant: b", "Human: a\n\nAssistant: c"),
        ("\n\nHuman:  a\n\nAssistant: b", "\n\nHuman:  a\n\nAssistant: c"),
        ("\n\nHuman: a \n\nAssistant: b", "\n\nHuman: a \n\nAssistant: c"),
        ("\n\nHuman: a\n\nHuman:\n\nAssistant: b", "\n\nHuman: a\n\nHuman:\n\nAssistant: c"),
        ("\n\nAssistant: a\n\nAssistant: b", "\n\nAssistant: a\n\nAssistant: c"),
        ("nothing", "spoken"),
        (None, f"{PLAIN} no"),
    ],
)
def test_a_transcript_that_is_not_plain_is_left_to_be_read(
    chosen: str | None, rejected: str | None
) -> None:
    assert plain_ids(a_table((chosen, rejected))) == [None]


def test_slices_of_a_table_and_rows_between_keep_their_own_ids() -> None:
    rows = [(f"{PLAIN} yes {i}", f"{PLAIN}{'  ' * (i % 3)} no {i} ") for i in range(9)]
    rows[4] = (f"{PLAIN} \N{GRINNING FACE}", f"{PLAIN} no")
    wanted = [parsed_id(*row) for row in rows]
    assert table_ids(a_table(*rows), HHRLHF()) == wanted
    assert table_ids(a_table(*rows).slice(3, 4), HHRLHF()) == wanted[3:7]
    assert plain_ids(a_table(*rows).slice(3, 4)) == [wanted[3], None, *wanted[5:7]]
    rows[5] = ("nothing", "spoken")
    assert table_ids(a_table(*rows), HHRLHF()) is None
