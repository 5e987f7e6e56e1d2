"""Make `sample_data/hh-rlhf`: 4,000 short HH-RLHF style preferences with a known truth.

    python sample_data/make_hh_rlhf.py            # rewrites sample_data/hh-rlhf

Every pair has a better and a worse response for a reason (a wrong fact, another question, an
evasion, rudeness, compliance with a harmful wish, ...). Quality is 0 minus the severities of a
response's defects plus a little taste; the gap between the two sides sets how often one of
sixteen annotators of unequal care labels the pair the wrong way round. Lengths are drawn from
one distribution for both sides, so length does not give the answer away.

`transcripts(seed, n)` yields fresh conversations of the same world for the tiny language model
to learn from. Both are functions of (seed, index).
"""

from __future__ import annotations

import gzip
import io
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hh_topics import HARMS, TABLES, Harm, Table

HERE = Path(__file__).resolve().parent
SEED = 2503
PAIRS = 4000

#: How much worse a defect makes a response, in units of the latent quality.
SEVERITY = {
    "off topic": 2.0,
    "rude": 1.7,
    "evasive": 1.4,
    "wrong answer": 1.3,
    "other question": 0.9,
    "repetitive": 0.8,
    "truncated": 0.7,
    "wrong detail": 0.6,
    "rambling": 0.4,
}
HARM_SEVERITY = {
    "complies": 2.4,
    "off topic": 1.7,
    "evasive": 1.0,
    "harsh": 0.9,
    "repetitive": 0.7,
    "truncated": 0.6,
    "no way forward": 0.4,
}

#: Error rate of each annotator on clear pairs, and their share of the work.
ANNOTATORS = {
    "ada": (0.03, 1.0), "ben": (0.05, 1.4), "chloe": (0.04, 0.7), "dev": (0.06, 1.1),
    "elif": (0.03, 0.8), "femi": (0.30, 0.9), "gus": (0.05, 1.2), "hana": (0.07, 1.0),
    "ivo": (0.04, 0.6), "june": (0.72, 0.7), "kofi": (0.06, 1.3), "lena": (0.26, 0.8),
    "mira": (0.05, 1.0), "noor": (0.08, 0.9), "otto": (0.34, 0.6), "pia": (0.04, 1.1),
}  # fmt: skip
#: Gap at which honest ambiguity has fallen to 1/e of a coin toss.
AMBIGUITY = 0.28

GREETINGS = ("", "", "", "", "Hi! ", "Hello! ", "Quick question: ", "Excuse me. ")
FOLLOW_UPS = (
    "Thanks, that helps. ",
    "Good to know. ",
    "Okay, one more thing. ",
    "Great, and now: ",
)
OPENERS = (
    "Sure!",
    "Happy to help.",
    "Good question.",
    "Of course.",
    "Here is what I know.",
    "Gladly.",
)
CLOSERS = (
    "I hope that helps.",
    "Let me know if you would like more.",
    "Feel free to ask if anything is unclear.",
    "Enjoy!",
    "Is there anything else I can do for you?",
)
EVASIONS = (
    "I am not really sure about that.",
    "It depends on many things.",
    "You could look it up somewhere.",
    "There are different opinions, so I would rather not say.",
    "Maybe somebody else can tell you.",
    "I do not have much to say here.",
    "People ask about all sorts of things.",
    "It is hard to give an answer.",
)
INSULTS = (
    "What a stupid question.",
    "Did you never go to school?",
    "I am tired of people like you.",
    "Even a child knows this.",
    "Stop wasting my time.",
    "You would not understand it anyway.",
)
RAMBLES = (
    "Well, you know, there is a lot to say and a lot has been said.",
    "Before I begin, let me begin by saying where one might begin.",
    "As everyone says, things are the way they are.",
    "That reminds me of many other matters, but never mind.",
    "In one way or another it is what it is.",
)
REFUSALS = (
    "I would rather not help you {r}.",
    "I am sorry, but I can not help you {r}.",
    "I do not want to help anyone {r}.",
)
REASONS = ("The reason is that {h}.", "Please think about it: {h}.", "I say this because {h}.")
WAYS_FORWARD = ("Instead you could {i}.", "A kinder way is to {i}.", "How about this: {i}?")
SUPPORT = (
    "I am glad to help you plan that.",
    "We can think it through together.",
    "Tell me more about what happened.",
)
HARSH = (
    "You are a terrible person for asking.",
    "Shame on you.",
    "I will report you at once.",
    "People like you disgust me.",
)
COMPLIANCE = (
    "Sure, that is easy.",
    "Wait until nobody is looking and then just do it.",
    "Here is how to {r}: be quick and leave no trace.",
    "Nobody will ever find out, so do not worry.",
    "If you want to {r}, start tonight.",
    "Have fun and tell me how it went!",
)


class Turn(NamedTuple):
    """One turn: role is `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class Scene:
    """What the last user turn asks: a slot of a topic, or a harmful request."""

    turns: tuple[Turn, ...]
    subject: tuple[Table, str, int] | Harm

    @property
    def severity(self) -> dict[str, float]:
        """The defects a response to this scene may have."""
        return HARM_SEVERITY if isinstance(self.subject, Harm) else SEVERITY


@dataclass(frozen=True)
class Labelled:
    """One labelled pair of the dataset and its truth."""

    turns: tuple[Turn, ...]
    chosen: str
    rejected: str
    annotator: str
    mislabelled: bool
    gap: float


def transcripts(seed: int, n: int) -> Iterator[tuple[list[Turn], str, str]]:
    """Yield n of (turns ending with the user's, a faultless response, a faulty one)."""
    for index in range(n):
        rng = random.Random(f"transcripts:{seed}:{index}")
        scene = _scene(rng)
        yield list(scene.turns), respond(rng, scene, ()), respond(rng, scene, _defects(rng, scene))


def respond(rng: random.Random, scene: Scene, defects: tuple[str, ...]) -> str:
    """Return a response with these defects, near a length drawn without looking at them."""
    target = rng.uniform(18, 42)
    write = _refuse if isinstance(scene.subject, Harm) else _answer
    drafts = [_finish(rng, write(rng, scene, defects), defects) for _ in range(10)]
    return min(drafts, key=lambda draft: abs(len(draft.split()) - target))


def dataset(seed: int = SEED, n: int = PAIRS) -> Iterator[Labelled]:
    """Yield n labelled pairs, each with sides that no earlier pair has."""
    names, loads = list(ANNOTATORS), [load for _, load in ANNOTATORS.values()]
    seen: set[tuple[object, ...]] = set()
    index = 0
    while len(seen) < n:
        index += 1
        rng = random.Random(f"dataset:{seed}:{index}")
        scene = _scene(rng)
        better, worse, gap = _two_sides(rng, scene)
        content = (scene.turns, *sorted((better, worse)))
        if better == worse or content in seen:
            continue
        seen.add(content)
        annotator = rng.choices(names, loads)[0]
        wrong = rng.random() < error_rate(annotator, gap)
        sides = (worse, better) if wrong else (better, worse)
        yield Labelled(scene.turns, *sides, annotator, wrong, gap)


def error_rate(annotator: str, gap: float) -> float:
    """Chance that `annotator` mislabels a pair whose sides differ by `gap`."""
    floor = ANNOTATORS[annotator][0]
    return max(floor, floor + (0.5 - floor) * math.exp(-gap / AMBIGUITY))


def transcript(turns: tuple[Turn, ...], response: str) -> str:
    """Return a conversation as HH-RLHF writes it."""
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(
        f"\n\n{names[turn.role]}: {turn.content}" for turn in (*turns, Turn("assistant", response))
    )


def _two_sides(rng: random.Random, scene: Scene) -> tuple[str, str, float]:
    """Return (better, worse, gap): often one is faultless, at times both are flawed."""
    mild = tuple(name for name, cost in scene.severity.items() if cost <= 0.9)
    first: tuple[str, ...] = () if rng.random() < 0.7 else (rng.choice(mild),)
    plans = [first, _defects(rng, scene)]
    quality = [rng.gauss(0, 0.12) - sum(scene.severity[name] for name in plan) for plan in plans]
    texts = [respond(rng, scene, plan) for plan in plans]
    if quality[0] < quality[1]:
        texts.reverse()
    return texts[0], texts[1], round(abs(quality[0] - quality[1]), 4)


def _defects(rng: random.Random, scene: Scene) -> tuple[str, ...]:
    count = rng.choices((1, 2), (0.75, 0.25))[0]
    return tuple(rng.sample(list(scene.severity), count))


def _scene(rng: random.Random) -> Scene:
    if rng.random() < 0.15:
        return _harm_scene(rng)
    table = rng.choice(TABLES)
    topic = rng.choice(list(table.facts))
    slots = rng.sample(range(len(table.slots)), 2)
    turns = [Turn("user", rng.choice(GREETINGS) + _question(rng, table, topic, slots[0]))]
    if rng.random() < 0.35:
        earlier = Scene(tuple(turns), (table, topic, slots[0]))
        turns.append(Turn("assistant", respond(rng, earlier, ())))
        turns.append(Turn("user", rng.choice(FOLLOW_UPS) + _question(rng, table, topic, slots[1])))
        slots.reverse()
    return Scene(tuple(turns), (table, topic, slots[0]))


def _harm_scene(rng: random.Random) -> Scene:
    harm = rng.choice(HARMS)
    ask = rng.choice(
        ("How do I {r}?", "Help me {r}.", "I want to {r}. Any ideas?", "Tell me how to {r}.")
    )
    return Scene((Turn("user", rng.choice(GREETINGS) + ask.format(r=harm.request)),), harm)


def _question(rng: random.Random, table: Table, topic: str, slot: int) -> str:
    return rng.choice(table.slots[slot].questions).format(n=topic)


def _statement(
    rng: random.Random, table: Table, topic: str, slot: int, *, true: bool = True
) -> str:
    value = table.facts[topic][slot]
    if not true:
        value = rng.choice([row[slot] for row in table.facts.values() if row[slot] != value])
    bare = topic.removeprefix("a ").removeprefix("an ")
    text = rng.choice(table.slots[slot].statements).format(n=topic, n0=bare, v=value)
    return text[0].upper() + text[1:].replace(" my ", " your ")


def _answer(rng: random.Random, scene: Scene, defects: tuple[str, ...]) -> list[str]:
    """Return the sentences of an answer: the asked fact and some neighbouring ones."""
    if "evasive" in defects:
        return rng.sample(EVASIONS, rng.randint(2, 5))
    assert not isinstance(scene.subject, Harm)
    table, topic, slot = scene.subject
    if "off topic" in defects:
        table = rng.choice(TABLES)
        topic = rng.choice([name for name in table.facts if name != topic])
        slot = rng.randrange(len(table.slots))
    others = [other for other in range(len(table.slots)) if other != slot]
    details = rng.sample(others, rng.randint(1, len(others)))
    body = [
        _statement(rng, table, topic, other, true=not (first and "wrong detail" in defects))
        for first, other in zip((True, False, False), details, strict=False)
    ]
    if "other question" not in defects:
        body.insert(0, _statement(rng, table, topic, slot, true="wrong answer" not in defects))
    return body


def _refuse(rng: random.Random, scene: Scene, defects: tuple[str, ...]) -> list[str]:
    """Return the sentences that answer a harmful request."""
    assert isinstance(scene.subject, Harm)
    harm = scene.subject
    words = {"r": harm.request.replace("my ", "your "), "h": harm.hurt, "i": harm.instead}
    if "off topic" in defects:
        table = rng.choice(TABLES)
        return _answer(rng, Scene((), (table, rng.choice(list(table.facts)), 0)), ())
    if "complies" in defects:
        return [line.format(**words) for line in rng.sample(COMPLIANCE, rng.randint(2, 4))]
    if "evasive" in defects:
        return rng.sample(EVASIONS, rng.randint(2, 5))
    body = [rng.choice(REFUSALS).format(**words), rng.choice(REASONS).format(**words)]
    if "harsh" in defects:
        return [body[0], *rng.sample(HARSH, rng.randint(1, 3))]
    if "no way forward" not in defects:
        body.append(rng.choice(WAYS_FORWARD).format(**words))
    return [*body, *rng.sample(SUPPORT, rng.randint(0, 2 if len(body) == 3 else 1))]


def _finish(rng: random.Random, body: list[str], defects: tuple[str, ...]) -> str:
    """Return the body with opener and closer, and the defects that any text can have."""
    if "repetitive" in defects:
        body = [body[0], *[rng.choice(body) for _ in range(rng.randint(0, 2))], body[0]]
    if "rambling" in defects:
        body = [*rng.sample(RAMBLES, rng.randint(1, 2)), *body[:2]]
    if "rude" in defects:
        body = [*rng.sample(INSULTS, rng.randint(1, 2)), *body[:3]]
    plain = not {"rude", "harsh", "complies"} & set(defects)
    if plain and rng.random() < 0.5:
        body = [rng.choice(OPENERS), *body]
    if plain and rng.random() < 0.5 and "truncated" not in defects:
        body = [*body, rng.choice(CLOSERS)]
    if "truncated" in defects:
        words = body[-1].split()
        body = [*body[:-1], " ".join(words[: rng.randint(2, max(2, len(words) - 2))])]
    return " ".join(body)


def write(directory: Path, seed: int = SEED, n: int = PAIRS) -> None:
    """Write `train.jsonl.gz` and `truth.parquet` (pair_id, mislabelled, gap, annotator)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from noisescope.datasets import load

    directory.mkdir(parents=True, exist_ok=True)
    rows = list(dataset(seed, n))
    lines = (
        json.dumps(
            {
                "chosen": transcript(row.turns, row.chosen),
                "rejected": transcript(row.turns, row.rejected),
                "annotator": row.annotator,
            }
        )
        for row in rows
    )
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9, mtime=0, filename="") as stream:
        stream.write(("\n".join(lines) + "\n").encode())
    (directory / "train.jsonl.gz").write_bytes(buffer.getvalue())
    table = load(directory / "train.jsonl.gz").table
    kept = [rows[row] for row in table["row"].to_pylist()]
    truth = {
        "pair_id": table["pair_id"],
        "mislabelled": [row.mislabelled for row in kept],
        "gap": pa.array([row.gap for row in kept], pa.float32()),
        "annotator": [row.annotator for row in kept],
    }
    pq.write_table(pa.table(truth), directory / "truth.parquet")


if __name__ == "__main__":
    write(HERE / "hh-rlhf")
