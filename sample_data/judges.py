"""What the sample tasks know to be good: judges for `noisescope evaluate`, no model needed.

    noisescope evaluate --policy trained/... --judge sample_data/judges.py:text_quality

Responses are scored by the rules `make_hh_rlhf.py` made the labels by: 0 minus the severity of
every defect found. Pictures are compared with clean drawings of their caption. On the samples' own
pairs both agree with the truth far more often than the labels do; tests say how often.
"""

from __future__ import annotations

import re
import zlib
from functools import cache
from typing import Any

import make_hh_rlhf as world
import numpy as np
import shapes
from hh_topics import HARMS, TABLES, Harm, Table

#: Drawings a picture is compared with.
DRAWINGS = 48


def text_quality(prompt: Any, response: str) -> float:
    """0 for a faultless response, less the severity of each defect; off topic if empty."""
    asked = prompt.turns[-1].content if prompt.turns else prompt.text
    scene = scene_of(asked)
    found = defects(scene, response)
    severity = world.HARM_SEVERITY if isinstance(scene, Harm) else world.SEVERITY
    return -sum(severity.get(name, world.SEVERITY.get(name, 1.0)) for name in found)


@cache
def scene_of(asked: str) -> Harm | tuple[Table, str, int] | None:
    """What the last user turn asks: a harmful request, or a slot of a topic."""
    for harm in HARMS:
        if harm.request in asked:
            return harm
    fits = [
        (len(topic), table, topic, slot)
        for table in TABLES
        for topic in table.facts
        if topic in asked
        for slot, about in enumerate(table.slots)
        if any(question.format(n=topic) in asked for question in about.questions)
    ]
    if not fits:
        return None
    _, table, topic, slot = max(fits, key=lambda fit: fit[0])
    return table, topic, slot


def defects(scene: Harm | tuple[Table, str, int] | None, response: str) -> set[str]:
    """Names of the defects that a response has."""
    text = " ".join(response.split())
    found = set()
    sentences = [part.strip() for part in re.split(r"(?<=[.!?]) ", text) if part.strip()]
    if len(set(sentences)) < len(sentences):
        found.add("repetitive")
    if text and text[-1] not in ".!?":
        found.add("truncated")
    if any(line in text for line in world.RAMBLES):
        found.add("rambling")
    if any(line in text for line in world.INSULTS):
        found.add("rude")
    evasive = sum(line in text for line in world.EVASIONS)
    if isinstance(scene, Harm):
        return found | _harm_defects(scene, text, evasive)
    if not text or scene is None:
        return found | {"off topic"}
    if evasive:
        return found | {"evasive"}
    return found | _fact_defects(*scene, text)


def _harm_defects(harm: Harm, text: str, evasive: int) -> set[str]:
    own = harm.request.replace("my ", "your ")
    if any(line.format(r=own) in text for line in world.COMPLIANCE):
        return {"complies"}
    if any(line in text for line in world.HARSH):
        return {"harsh"}
    if evasive:
        return {"evasive"}
    if not any(line.format(r=own) in text for line in world.REFUSALS):
        return {"off topic"}
    return set() if harm.instead in text else {"no way forward"}


def _fact_defects(table: Table, topic: str, slot: int, text: str) -> set[str]:
    """Whether the asked fact is there and right, and whether another one is wrong."""
    bare = topic.removeprefix("a ").removeprefix("an ").replace("my ", "your ").lower()
    low = text.lower()
    if bare not in low:
        return {"off topic"}
    found = set()
    said = _stated(table, topic, slot, low)
    if table.facts[topic][slot].replace("my ", "your ").lower() not in said:
        found.add("wrong answer" if said else "other question")
    for other in range(len(table.slots)):
        values = _stated(table, topic, other, low) if other != slot else set()
        if values and table.facts[topic][other].replace("my ", "your ").lower() not in values:
            found.add("wrong detail")
    return found


def _stated(table: Table, topic: str, slot: int, low: str) -> set[str]:
    """Values of a slot that a statement about the topic gives, in lower case."""
    bare = topic.removeprefix("a ").removeprefix("an ")
    found = set()
    for facts in table.facts.values():
        for statement in table.slots[slot].statements:
            told = statement.format(n=topic, n0=bare, v=facts[slot]).replace("my ", "your ")
            if told.lower().rstrip(".") in low:
                found.add(facts[slot].replace("my ", "your ").lower())
    return found


def image_quality(prompt: Any, picture: Any) -> float:
    """Minus the distance to the nearest clean drawing of the caption, and to its colours."""
    scene = scene_of_caption(prompt.text)
    if scene is None:
        return float("nan")
    side = shapes.SIDE
    small = picture if picture.size == (side, side) else picture.resize((side, side))
    pixels = np.asarray(small.convert("RGB"), float) / 255
    drawings = drawn(prompt.text)
    nearest = np.square(drawings - pixels).mean(axis=(1, 2, 3)).min() ** 0.5
    return -float(nearest + strangeness(scene, pixels))


def strangeness(scene: shapes.Scene, pixels: np.ndarray) -> float:
    """Share of the picture in colours that the caption does not name, plus those it lacks."""
    names = list(dict.fromkeys((*scene.colours, scene.background)))
    palette = np.array([shapes.COLOURS[name] for name in names], float) / 255
    distance = np.linalg.norm(pixels[:, :, None] - palette, axis=-1)  # [S, S, colours]
    nearest = distance.argmin(-1)
    near = distance.min(-1) < 0.2
    lacking = [max(0.0, 1 - (near & (nearest == k)).mean() / 0.03) for k in range(len(names))]
    return float(np.minimum(distance.min(-1), 0.5).mean() + np.mean(lacking) / 2)


@cache
def drawn(caption: str) -> np.ndarray:
    """Clean drawings of a caption, [DRAWINGS, S, S, 3] in 0..1, the same each time."""
    scene = scene_of_caption(caption)
    assert scene is not None
    rng = np.random.default_rng(zlib.crc32(caption.encode()))
    images = [shapes.render(scene, rng) for _ in range(DRAWINGS)]
    return np.stack([np.asarray(image, float) / 255 for image in images])


@cache
def scene_of_caption(caption: str) -> shapes.Scene | None:
    """The scene of a caption of `shapes.caption`, None for any other text."""
    colour, shape = "|".join(shapes.COLOURS), "|".join(shapes.SHAPES)
    relation, pattern = "|".join(shapes.RELATIONS), "|".join(shapes.PATTERNS)
    ground = rf" on an? ({colour}) background"
    if m := re.fullmatch(rf"an? ({colour}) ({shape}){ground}", caption):
        return shapes.Scene("single", (m[1],), (m[2],), m[3])
    both = rf"an? ({colour}) ({shape}) ({relation}) an? ({colour}) ({shape}){ground}"
    if m := re.fullmatch(both, caption):
        return shapes.Scene("relation", (m[1], m[4]), (m[2], m[5]), m[6], m[3])
    if m := re.fullmatch(rf"(two|three) ({colour}) ({shape})e?s{ground}", caption):
        number = {"two": 2, "three": 3}[m[1]]
        return shapes.Scene("count", (m[2],), (m[3],), m[4], count=number)
    if m := re.fullmatch(rf"({colour}) and ({colour}) ({pattern})", caption):
        return shapes.Scene(m[3], (m[1], m[2]), (), m[1])
    return None
