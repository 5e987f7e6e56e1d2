"""Captioned pictures of coloured shapes: the source of the image sample and of its tiny model.

    scene = draw_scene(rng)            # a caption's content
    caption(scene), render(scene, rng) # "a red circle above a blue square on a green background"
    degrade(image, "blur", severity)   # what a worse picture of the same scene looks like

Everything is drawn here; no third-party pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 32
OVERSAMPLE = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (244, 140, 30),
    "yellow": (246, 214, 60),
    "green": (50, 150, 70),
    "cyan": (60, 200, 210),
    "blue": (40, 80, 200),
    "purple": (130, 60, 170),
    "pink": (246, 140, 180),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross")
RELATIONS = ("above", "below", "left of", "right of")
PATTERNS = ("stripes", "checks")
DEGRADATIONS = ("noise", "blur", "blocks", "washed-out")


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one or two things, some equal things, or a two-colour pattern."""

    kind: str  # "single", "relation", "count" or a pattern's name
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    background: str
    relation: str = ""
    count: int = 1


def draw_scene(rng: np.random.Generator) -> Scene:
    """A scene at random; all of its colours differ."""
    colours = tuple(str(name) for name in rng.permutation(list(COLOURS))[:3])
    shapes = tuple(str(name) for name in rng.choice(SHAPES, 2))
    roll = rng.random()
    if roll < 0.4:
        return Scene("single", colours[:1], shapes[:1], colours[2])
    if roll < 0.75:
        relation = str(rng.choice(RELATIONS))
        return Scene("relation", colours[:2], shapes, colours[2], relation)
    if roll < 0.9:
        return Scene("count", colours[:1], shapes[:1], colours[2], count=int(rng.integers(2, 4)))
    return Scene(str(rng.choice(PATTERNS)), colours[:2], (), colours[0])


def article(word: str) -> str:
    """The word with its indefinite article."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def caption(scene: Scene) -> str:
    """The caption a user would have typed for the scene."""
    ground = f"on {article(scene.background)} background"
    if scene.kind == "single":
        return f"{article(scene.colours[0])} {scene.shapes[0]} {ground}"
    if scene.kind == "relation":
        pairs = zip(scene.colours, scene.shapes, strict=True)
        first, second = (f"{article(colour)} {shape}" for colour, shape in pairs)
        return f"{first} {scene.relation} {second} {ground}"
    if scene.kind == "count":
        number = {2: "two", 3: "three"}[scene.count]
        plural = scene.shapes[0] + ("es" if scene.shapes[0] == "cross" else "s")
        return f"{number} {scene.colours[0]} {plural} {ground}"
    return f"{scene.colours[0]} and {scene.colours[1]} {scene.kind}"


def mistake(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene that contradicts `scene`'s caption in one or more words."""
    others = [name for name in COLOURS if name not in (*scene.colours, scene.background)]
    roll = rng.random()
    if roll < 0.35:
        fresh = str(rng.choice(others))
        return replace(scene, colours=(fresh, *scene.colours[1:]))
    if roll < 0.55 and scene.shapes:
        fresh = str(rng.choice([name for name in SHAPES if name != scene.shapes[0]]))
        return replace(scene, shapes=(fresh, *scene.shapes[1:]))
    if roll < 0.8 and scene.shapes:
        return replace(scene, background=str(rng.choice(others)))
    while True:
        other = draw_scene(rng)
        if caption(other) != caption(scene):
            return other


def shade(name: str, rng: np.random.Generator) -> np.ndarray:
    """The named colour, a little lighter or darker, [3] float in 0..255."""
    return np.clip(np.array(COLOURS[name], float) + rng.normal(0, 7, 3), 0, 255)


def centres(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """(x, y, radius) of each thing, in units of the picture's side."""
    if scene.kind == "single":
        return [(*(0.5 + rng.uniform(-0.12, 0.12, 2)), rng.uniform(0.22, 0.34))]
    if scene.kind == "count":
        xs = {2: (0.27, 0.73), 3: (0.19, 0.5, 0.81)}[scene.count]
        radius = rng.uniform(0.12, 0.15)
        return [(x + rng.uniform(-0.03, 0.03), 0.5 + rng.uniform(-0.2, 0.2), radius) for x in xs]
    near, far = 0.27 + rng.uniform(-0.04, 0.04, 2), 0.73 + rng.uniform(-0.04, 0.04, 2)
    radii = rng.uniform(0.15, 0.21, 2)
    across = scene.relation in ("left of", "right of")
    first = (near[0], near[1]) if scene.relation in ("left of", "above") else (far[0], far[1])
    second = (far[0], far[1]) if scene.relation in ("left of", "above") else (near[0], near[1])
    slide = 0.5 + rng.uniform(-0.12, 0.12, 2)
    spots = [(first[0], slide[0]), (second[0], slide[1])]
    return [
        (along, side, r) if across else (side, along, r)
        for (along, side), r in zip(spots, radii, strict=True)
    ]


def paint_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: tuple[int, ...]
) -> None:
    """Draw one shape at pixel centre (x, y) with radius r."""
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "square":
        draw.rectangle((x - 0.88 * r, y - 0.88 * r, x + 0.88 * r, y + 0.88 * r), fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=fill)
    elif shape == "diamond":
        draw.polygon([(x, y - 1.1 * r), (x + 0.7 * r, y), (x, y + 1.1 * r), (x - 0.7 * r, y)], fill)
    elif shape == "ring":
        draw.ellipse(box, outline=fill, width=round(0.45 * r))
    else:
        arm = 0.35 * r
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)


def background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Ground of a scene: a soft gradient of its colour, or its pattern, [S, S, 3] float."""
    side = SIDE * OVERSAMPLE
    down, across = np.mgrid[0:side, 0:side] / side
    if scene.kind in PATTERNS:
        period, phase = rng.uniform(0.2, 0.34), rng.uniform(0, 1, 2)
        mask = np.floor(across / period + phase[0]) % 2
        if scene.kind == "checks":
            mask = (mask + np.floor(down / period + phase[1])) % 2
        elif rng.random() < 0.5:
            mask = mask.T
        first, second = (shade(name, rng) for name in scene.colours)
        return np.where(mask[..., None] > 0, first, second)
    slope = rng.uniform(-18, 18, 2)
    light = slope[0] * (down - 0.5) + slope[1] * (across - 0.5)
    return np.clip(shade(scene.background, rng) + light[..., None], 0, 255)


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """A clean picture of the scene, SIDE x SIDE RGB; places, sizes and shades vary with `rng`."""
    canvas = Image.fromarray(background(scene, rng).round().astype(np.uint8))
    if scene.kind not in PATTERNS:
        draw = ImageDraw.Draw(canvas)
        side = SIDE * OVERSAMPLE
        for number, (x, y, r) in enumerate(centres(scene, rng)):
            which = min(number, len(scene.shapes) - 1)
            fill = tuple(int(v) for v in shade(scene.colours[which], rng))
            paint_shape(draw, scene.shapes[which], x * side, y * side, r * side, fill)
    return canvas.resize((SIDE, SIDE), Image.Resampling.BOX)


def degrade(
    image: Image.Image, kind: str, severity: float, rng: np.random.Generator
) -> Image.Image:
    """A worse copy: severity in 0 (barely) .. 1 (badly)."""
    pixels = np.asarray(image, float)
    if kind == "noise":
        pixels = pixels + rng.normal(0, 14 + 34 * severity, pixels.shape)
    elif kind == "blur":
        pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1.2 + 1.8 * severity)), float)
    elif kind == "blocks":
        for _ in range(2 + round(4 * severity)):
            x, y = rng.integers(0, SIDE - 6, 2)
            size = rng.integers(4, 8)
            pixels = pixels.copy()
            pixels[y : y + size, x : x + size] = rng.uniform(0, 255, 3)
    else:
        grey = pixels.mean(axis=(0, 1))
        pixels = pixels + (0.45 + 0.35 * severity) * (0.5 * grey + 100 - pixels)
    return Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))
