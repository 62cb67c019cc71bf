"""Small scenes of coloured shapes, as pictures and as words that say the same."""

import io
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image
import PIL.ImageDraw

from marvel_jax.data.mbeir_sets import TextKind

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "blue": (36, 84, 214),
    "yellow": (244, 208, 36),
    "green": (44, 160, 60),
    "black": (24, 24, 24),
    "white": (248, 248, 248),
    "orange": (244, 130, 32),
    "purple": (128, 50, 168),
    "pink": (244, 150, 196),
    "grey": (132, 132, 132),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")

# Words that say nothing of the scene: texts get their length from them.
_FILLER_TEXT = (
    "it was seen near the old harbour one morning in spring when many people came by and some of "
    "them stayed until evening because there was music on the square while a light rain fell over "
    "roofs boats gardens and long quiet roads that lead out to hills farms rivers and small towns"
)
_FILLER = _FILLER_TEXT.split()
_WORDS_A_TOKEN = 0.8
_MOST_TOKENS = 480
_LENGTHS: dict[TextKind, tuple[float, float]] = {
    # Median tokens of the real texts, and how far the logarithm spreads.
    "caption": (13, 0.3),
    "headline": (25, 0.4),
    "question": (11, 0.4),
    "passage": (130, 0.6),
}
_ASPECT, _ASPECT_SPREAD, _LEAST_ASPECT, _MOST_ASPECT = 1.5, 0.2, 1.33, 3.67


@dataclass(frozen=True)
class Thing:
    """A shape of a colour."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Things from left to right on a ground. Two scenes differ in at least one word."""

    ground: str
    things: tuple[Thing, ...]

    def __str__(self) -> str:
        return f"{' beside '.join(map(_with_article, self.things))} on {self.ground}"


def _with_article(thing: Thing) -> str:
    return f"{'an' if thing.colour[0] in 'aeiou' else 'a'} {thing}"


def count_scenes(things: int) -> int:
    """How many scenes there are with so many things."""
    return int(len(COLOURS) * ((len(COLOURS) - 1) * len(SHAPES)) ** things)


def scene(number: int, *, things: int) -> Scene:
    """The scene of a number below `count_scenes(things)`. No thing has the ground's colour."""
    names = list(COLOURS)
    number, place = divmod(number, len(names))
    ground = names.pop(place)
    found = []
    for _ in range(things):
        number, colour = divmod(number, len(names))
        number, shape = divmod(number, len(SHAPES))
        found.append(Thing(names[colour], SHAPES[shape]))
    return Scene(ground, tuple(found))


def changed(of: Scene, rng: np.random.Generator) -> tuple[Scene, str]:
    """A scene that differs in one colour, and the words that lead from it back to `of`."""
    place = int(rng.integers(len(of.things) + 1))
    used = {of.ground, *(thing.colour for thing in of.things)}
    other = str(rng.choice([name for name in COLOURS if name not in used]))  # at most 9 are used
    if place == len(of.things):
        return replace(of, ground=other), f"the same on {of.ground}"
    things = list(of.things)
    things[place] = replace(things[place], colour=other)
    words = f"make thing {place + 1} {of.things[place].colour}"
    return replace(of, things=tuple(things)), words


def draw(shown: Scene, *, short_side: int, rng: np.random.Generator) -> bytes:
    """A JPEG of a scene. Its size, and where the things are, differ from one to the next."""
    ratio = float(
        np.clip(_ASPECT * np.exp(_ASPECT_SPREAD * rng.normal()), _LEAST_ASPECT, _MOST_ASPECT)
    )
    width, height = round(short_side * ratio), short_side
    if rng.random() < 0.25:
        width, height = height, width
    picture = PIL.Image.new("RGB", (width, height), COLOURS[shown.ground])
    pen = PIL.ImageDraw.Draw(picture)
    step = width / len(shown.things)
    for number, thing in enumerate(shown.things):
        half = 0.5 * min(step, height) * rng.uniform(0.55, 0.85)
        x = step * (number + 0.5) + rng.uniform(-0.5, 0.5) * max(step - 2 * half, 0)
        y = height / 2 + rng.uniform(-0.5, 0.5) * max(height - 2 * half, 0)
        _draw_thing(pen, thing, x, y, half)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _draw_thing(
    pen: PIL.ImageDraw.ImageDraw, thing: Thing, x: float, y: float, half: float
) -> None:
    colour = COLOURS[thing.colour]
    box = (x - half, y - half, x + half, y + half)
    third = half / 3
    if thing.shape == "circle":
        pen.ellipse(box, fill=colour)
    elif thing.shape == "square":
        pen.rectangle(box, fill=colour)
    elif thing.shape == "triangle":
        pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=colour)
    elif thing.shape == "ring":
        pen.ellipse(box, outline=colour, width=max(2, round(third)))
    else:
        pen.rectangle((x - half, y - third, x + half, y + third), fill=colour)
        if thing.shape == "cross":
            pen.rectangle((x - third, y - half, x + third, y + half), fill=colour)


def write(kind: TextKind, core: str, *, scale: float, rng: np.random.Generator) -> str:
    """A text of a kind that says `core`, padded with empty words to a length of that kind.

    Lengths follow the real texts', times `scale`; no text loses its core.
    """
    median, spread = _LENGTHS[kind]
    tokens = min(median * float(np.exp(spread * rng.normal())), _MOST_TOKENS) * scale
    missing = round(tokens * _WORDS_A_TOKEN) - len(core.split())
    start = int(rng.integers(len(_FILLER)))
    words = [_FILLER[(start + place) % len(_FILLER)] for place in range(max(missing, 0))]
    if kind == "question":
        return " ".join([core, *words]) + "?"
    sentences = [words[place : place + 12] for place in range(0, len(words), 12)]
    return ". ".join([core, *(" ".join(sentence) for sentence in sentences)]) + "."


class Scenes:
    """Scenes that do not come again, with as few things as give `count` of them."""

    def __init__(self, count: int, rng: np.random.Generator) -> None:
        self._things = next(things for things in range(2, 9) if count <= count_scenes(things))
        self._count = count_scenes(self._things)
        self._place = int(rng.integers(self._count))
        # Steps of a size without a common divisor lead through all before one comes again.
        steps = (int(rng.integers(self._count)) for _ in itertools.count())
        self._step = next(step for step in steps if math.gcd(step, self._count) == 1)

    def take(self) -> Scene:
        """The next one."""
        self._place = (self._place + self._step) % self._count
        return scene(self._place, things=self._things)
