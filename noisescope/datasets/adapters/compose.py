"""Compose a pair from a row's texts, messages or transcripts: a prompt and two responses.

The prompt is the turns common to both sides, up to the last assistant turn that both reach. Cutting
by characters instead swallows response text wherever two responses begin alike, and cutting at
one side's last assistant turn is wrong where the conversations diverge earlier.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from noisescope.datasets.adapters.cells import Joined, RowFault, decoded, is_missing, shortened
from noisescope.datasets.conversations import Spoken, rendered, spoken, tools_turn, written
from noisescope.pairs import Message

#: (prompt, its turns or None, first response, second response).
Composed = tuple[str, tuple[Message, ...] | None, str, str]
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_LAST, _ASIDE = "\n\nAssistant:", "\n\nHuman:"
_OPENING = re.compile(r"\A\s*Human:.*\n\nAssistant:\s*\Z", re.DOTALL)
_TEXTS = re.compile(r"\s*\[\s*(?:[\"'].*[\"']|null|None)\s*\]\s*", re.DOTALL)
#: What precedes an answer in a text that has speakers or headings.
_ANSWERS = re.compile(
    r"(?:\b(?:assistant|response|answer|output|bot|ai|gpt|chatgpt|model)\s*(?:\||:|>|\])\W*|\[/INST\]\s*)\Z",
    re.IGNORECASE,
)
#: A prompt this long that opens both responses is repeated there, not a coincidence.
REPEATED = 20


@final
@dataclass(frozen=True, slots=True)
class Opening:
    """What precedes the two responses.

    `implicit` if the row has no column for its prompt; `transcripts` if both sides hold it.
    """

    prompt: Any = None
    system: Any = None
    tools: Any = None
    history: Any = None
    context: Any = None
    implicit: bool = False
    transcripts: bool = False

    @property
    def plain(self) -> bool:
        """Whether there is nothing but a prompt."""
        return self.system is self.tools is self.history is self.context is None


def compose(
    opening: Opening, one: Any, other: Any, names: tuple[str, str] = ("chosen", "rejected")
) -> Composed:
    """Return (prompt, its turns or None, first response, second response). Raises RowFault."""
    turns = _alternating(opening.prompt, one, other)
    if turns is None:
        a, b = spoken(one, names[0]), spoken(other, names[1])
    else:
        opening, (a, b) = replace(opening, prompt=None, implicit=True), turns
    prompt = None if opening.implicit else _prompt(opening.prompt)
    if isinstance(opening.context, str) and isinstance(prompt, str):
        if not is_missing(opening.context):
            prompt = f"{opening.context}\n\n{prompt}"
        opening = replace(opening, context=None)
    if isinstance(a, str) and isinstance(b, str):
        if opening.plain and (prompt is None or isinstance(prompt, str)):
            return _plain(prompt, a, b, opening)
    elif isinstance(a, str) or isinstance(b, str):
        odd = names[0] if isinstance(a, str) else names[1]
        raise RowFault("unreadable", f"{odd} is text, expected a list of messages")
    return _conversation(opening, prompt, a, b)


def _alternating(*cells: Any) -> list[tuple[Message, ...]] | None:
    """The two conversations of three lists of texts: what the user asked, and each answer."""
    asked, *sides = (_texts(cell) for cell in cells)
    if asked is None or any(side is None for side in sides):
        return None
    return [
        tuple(
            Message(role, text or "")
            for turn in zip(asked, side or (), strict=False)
            for role, text in zip(("user", "assistant"), turn, strict=True)
        )
        for side in sides
    ]


def _texts(cell: Any) -> list[str | None] | None:
    """A list of texts, or JSON text of one; None for anything else."""
    if isinstance(cell, str) and _TEXTS.fullmatch(cell):
        cell = decoded(cell)
    if not isinstance(cell, (list, tuple)) or not cell:
        return None
    fits = all(part is None or isinstance(part, str) for part in cell)
    return list(cell) if fits and any(isinstance(part, str) for part in cell) else None


def _prompt(found: Any) -> Spoken | None:
    """A prompt as text or turns; None if the row has none."""
    if isinstance(found, Joined):
        parts = [_turns(spoken(part, "prompt")) for part in found]
        return tuple(turn for turns in parts for turn in turns)
    if found is None or (isinstance(found, (list, tuple, dict)) and not found):
        return None
    prompt = spoken(found, "prompt")
    if isinstance(prompt, str):
        if _OPENING.match(prompt):
            return tuple(turns_of(prompt.strip()[: -len("Assistant:")].rstrip(), "prompt"))
        if prompt and is_missing(prompt) and prompt.strip():
            raise RowFault("unreadable", f"prompt is {prompt.strip()!r}, text for a missing value")
    return prompt


def _plain(prompt: str | None, a: str, b: str, opening: Opening) -> Composed:
    """Two texts, and a text as their prompt or none."""
    if prompt is None:
        if not opening.implicit:
            raise RowFault("unreadable", "prompt is missing or null")
        if opening.transcripts or is_transcript(a) or is_transcript(b):
            turns, a, b = split_transcripts(a, b)
            if not any(turn.role == "user" for turn in turns):
                raise RowFault("unreadable", "no Human turn before the response")
            return rendered(turns), turns, a, b
        prompt, a, b = _common_words(a, b)
        return prompt, None, a, b
    if not prompt.strip() and not (is_transcript(a) or is_transcript(b)):
        raise RowFault("unreadable", "prompt is empty")
    if all(side.lstrip().startswith("Human:") and is_transcript(side) for side in (a, b)):
        sides = tuple(turns_of(a, "chosen")), tuple(turns_of(b, "rejected"))
        if _holds(sides[0], prompt):
            return _conversation(Opening(), prompt, *sides)
    if any(ends_with(prompt, side) and _ANSWERS.search(prompt.rstrip()[: -len(side.strip())])
           for side in (a, b)):  # fmt: skip
        raise RowFault("unreadable", "the prompt contains one of the responses")
    if repeats(prompt, a, b):
        cut = len(prompt.strip())
        a, b = (side.lstrip()[cut:].lstrip() for side in (a, b))
    return prompt, None, a, b


def ends_with(prompt: str, side: str) -> bool:
    """Whether a prompt ends with a response: a text to rewrite, or an answer it gives away."""
    return len(side.strip()) >= REPEATED and prompt.rstrip().endswith(side.strip())


def repeats(prompt: str, a: str, b: str) -> bool:
    """Whether both responses begin with the prompt itself, and go on."""
    start = prompt.strip()
    return len(start) >= REPEATED and all(
        side.lstrip().startswith(start) and len(side.strip()) > len(start) for side in (a, b)
    )


def _conversation(opening: Opening, prompt: Any, one: Spoken, other: Spoken) -> Composed:
    """A prompt and two sides, any of which may be messages."""
    before = _context(opening)
    asked = _turns(prompt) if prompt is not None else ()
    ends = {
        (side if isinstance(side, str) else written(side[-1:])).strip() for side in (one, other)
    }
    if asked and asked[-1].role == "assistant" and asked[-1].content.strip() in ends:
        raise RowFault("unreadable", "the prompt contains one of the responses")
    if isinstance(one, str) and isinstance(other, str):
        turns = (*before, *asked)
        if not any(turn.role not in ("system", "tools") for turn in turns):
            raise RowFault("unreadable", "no prompt before the response")
        return rendered(turns), turns, one, other
    a, b = _turns(one), _turns(other)
    own = not all(side[:1] and side[0].role == "assistant" for side in (a, b))
    if asked or own:
        cut = _overlap(asked, a, b)
        if cut:
            a, b = a[cut:], b[cut:]
        elif asked and own and isinstance(prompt, str):
            if not _holds(a, prompt):
                raise RowFault("unreadable", "the sides do not begin with the prompt")
            asked = ()
    system = [turn for turn in before if turn.role != "tools"]
    if system and not asked and a[:1] == b[:1] and a and a[0].role == "system":
        before = tuple(turn for turn in before if turn.role == "tools" or turn != a[0])
    lead = (*before, *asked)
    turns, x, y = split((*lead, *a), (*lead, *b))
    if not any(turn.role not in ("system", "tools") for turn in turns):
        raise RowFault("unreadable", "no prompt before the response")
    return rendered(turns), turns, x, y


def _context(opening: Opening) -> tuple[Message, ...]:
    """Turns before the prompt: tools, system text, context, earlier turns."""
    turns: list[Message] = []
    if not is_missing(opening.tools):
        turns.append(tools_turn(opening.tools))
    for role, part in (("system", opening.system), ("user", opening.context)):
        if not is_missing(part):
            text = spoken(part, role)
            turns += (Message(role, text),) if isinstance(text, str) else text
    if not is_missing(opening.history):
        turns += _history(opening.history)
    return tuple(turns)


def _history(found: Any) -> Sequence[Message]:
    """Earlier turns: messages, [question, answer] pairs, a transcript, or a text."""
    found = decoded(found)
    pairs = isinstance(found, (list, tuple)) and all(
        isinstance(turn, (list, tuple)) and len(turn) == 2 and all(isinstance(t, str) for t in turn)
        for turn in found
    )
    if pairs:
        return [
            Message(role, text)
            for turn in found
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
    return _turns(spoken(found, "history"))


def _turns(prompt: Spoken) -> tuple[Message, ...]:
    """A text as turns: those of a transcript, else one user turn; nothing if blank."""
    if not isinstance(prompt, str):
        return prompt
    if prompt.lstrip().startswith("Human:") and is_transcript(prompt):
        return tuple(turns_of(prompt, "prompt"))
    return (Message("user", prompt),) if prompt.strip() else ()


def _overlap(asked: Sequence[Message], a: Sequence[Message], b: Sequence[Message]) -> int:
    """How many turns at the end of the prompt both sides begin with."""

    def same(one: Sequence[Message], other: Sequence[Message]) -> bool:
        return [(t.role, t.content.strip()) for t in one] == [
            (t.role, t.content.strip()) for t in other
        ]

    for length in range(min(len(asked), len(a), len(b)), 0, -1):
        end = asked[-length:]
        if same(end, a[:length]) and same(end, b[:length]):
            return length
    return 0


def _holds(turns: Sequence[Message], prompt: str) -> bool:
    """Whether a conversation contains a prompt, or its opening is part of one."""
    wanted = " ".join(prompt.split())
    texts = [" ".join(turn.content.split()) for turn in turns if turn.role != "assistant"]
    return not wanted or any(
        wanted in text or (len(text) >= REPEATED and text in wanted) for text in texts
    )


def split(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[tuple[Message, ...], str, str]:
    """Return (prompt turns, chosen response, rejected response).

    If the conversations diverge before their last turn, the responses are all that follows,
    written out. Raises RowFault if no assistant turn follows a common prompt.
    """
    if list(chosen) == list(rejected):
        raise RowFault("identical sides", f"the same {len(chosen)} turns")
    common = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        common += 1
    cut = common
    while cut >= 0 and not _both_answer(chosen, rejected, cut):
        cut -= 1
    if cut < 0:
        raise RowFault("unreadable", _no_common_prompt(chosen, rejected))
    return tuple(chosen[:cut]), written(chosen[cut:]), written(rejected[cut:])


def _both_answer(chosen: Sequence[Message], rejected: Sequence[Message], turn: int) -> bool:
    return all(turn < len(side) and side[turn].role == "assistant" for side in (chosen, rejected))


def _no_common_prompt(chosen: Sequence[Message], rejected: Sequence[Message]) -> str:
    for side in (chosen, rejected):
        if not any(turn.role == "assistant" for turn in side):
            roles = ", ".join(dict.fromkeys(turn.role for turn in side)) or "none"
            return f"no assistant turn that both sides reach (roles found: {roles})"
    return "the two sides answer different prompts"


# --- transcripts ----------------------------------------------------------------------------


def split_transcripts(chosen: str, rejected: str) -> tuple[tuple[Message, ...], str, str]:
    """Return (prompt turns, chosen response, rejected response). Raises RowFault.

    Nearly all transcripts differ in their last turn alone: those are cut there, which gives what
    `split` gives for the parsed turns, at half the cost.
    """
    opening, mark, response = chosen.rpartition(_LAST)
    other_opening, _, other = rejected.rpartition(_LAST)
    if mark and opening == other_opening and not (_ASIDE in response or _ASIDE in other):
        return tuple(turns_of(opening, "chosen")), response.strip(), other.strip()
    return split(turns_of(chosen, "chosen"), turns_of(rejected, "rejected"))


def is_transcript(side: object) -> bool:
    """Whether a side reads as two or more spoken turns."""
    return isinstance(side, str) and len(_SPEAKER.split(side, maxsplit=2)) > 3


def turns_of(transcript: str, column: str) -> list[Message]:
    """Turns of a transcript. Raises RowFault if it does not open with a speaker."""
    opening, *pieces = _SPEAKER.split(transcript)
    if opening.strip() or not pieces:
        raise RowFault("unreadable", f"{column} is no transcript: {shortened(transcript)!r}")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        Message(roles[speaker], content.strip())
        for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _common_words(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split off the common words; each side keeps at least one."""
    sides = [re.findall(r"\s*\S+", side.rstrip()) for side in (chosen, rejected)]
    limit = min(map(len, sides)) - 1
    common = 0
    while common < limit and sides[0][common] == sides[1][common]:
        common += 1
    length = sum(map(len, sides[0][:common]))
    return chosen[:length], chosen[length:].strip(), rejected[length:].strip()
