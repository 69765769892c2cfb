"""The people of the pocketworld and what is true about them.

Everybody has a job, a home, an animal with a name of its own, a favourite food and a coat. The world is a pure function
of its seed, on every Python version: seeds are strings, which `random.Random` hashes itself (never `hash()`).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from chatpipe.errors import UsageError

T = TypeVar("T")
Split = Literal["sft", "practice", "test"]


def words(text: str) -> tuple[str, ...]:
    """The words of `text`."""
    return tuple(text.split())


# No word is in two of these lists, or in a sentence of `wording`: a word identifies a value.
VALUES: dict[str, tuple[str, ...]] = {
    "job": words("baker fisher teacher painter carpenter doctor gardener tailor smith weaver potter sailor"),
    "home": words("harbour mill chapel bridge market forest hill lake castle orchard station lighthouse"),
    "animal": words("cat dog goat horse parrot rabbit turtle goose pony donkey"),
    "pet": words(
        "Alfie Amber Archie Bandit Basil Bella Benji Biscuit Bonnie Boris Bramble Bruno Bubbles Buster Button "
        "Captain Casper Charlie Chester Clover Coco Comet Cookie Copper Daisy Dexter Dolly Dusty Echo Felix Fern "
        "Fidget Figaro Flash Frosty Ginger Gizmo Goldie Gus Harvey Hazel Hector Holly Humphrey Iggy Iris Ivory Ivy "
        "Jasper Jester Juno Jupiter Kiki Kipper Lady Lottie Lucky Loki Maple Marble Merlin Milo Minty Misty Mocha "
        "Monty Muffin Nelson Nero Nugget Nutmeg Olive Oscar Otto Paddy Patch Peanut Pebble Penny Pepper Percy "
        "Pickle Pippin Pixie Poppy Prince Pumpkin Quincy Raffles Rascal Rex Ripple Rocky Rolo Rosie Ruby Rufus "
        "Rusty Sable Salty Sammy Scout Shadow Silver Skipper Smoky Smudge Snowy Socks Sooty Sparky Spike Star "
        "Storm Sunny Taffy Tango Teddy Thistle Tiger Tilly Toby Toffee Topsy Treacle Trixie Truffle Tulip Velvet "
        "Violet Waffles Whisky Willow Winnie Wizard Woody Ziggy Zorro"
    ),
    "food": words("bread soup cheese honey fish pie plums porridge cake pears stew carrots"),
    "coat": words("red blue green yellow white black brown grey purple pink"),
}
ATTRIBUTES = tuple(VALUES)

NAME_STARTS = words("Ma To Li Be Ka Ro Sa Ni Pau Du Fe Hel Jo Lu Vi Ja Al El Ed Os Bri Tam Gre Mi")
FEMALE_ENDS = words("ra na dia lin sa wen la rit sha mira")
MALE_ENDS = words("mas vik bo len rik den lan vin ston dor")

SFT_SHARE = 0.7
PRACTICE_SHARE = 0.15
"""Shares of the people (and of the strangers and the sums) that fine-tuning and practice get; the test has the rest."""


@dataclass(frozen=True)
class Person:
    """Somebody in the world. `pronoun` is "she" or "he"; `pet` is the name of the animal and belongs to nobody else."""

    name: str
    pronoun: str
    job: str
    home: str
    animal: str
    pet: str
    food: str
    coat: str


@dataclass(frozen=True)
class World:
    """Everybody who exists, each in one of three splits, and the names of strangers: people who do not exist."""

    seed: int
    splits: dict[Split, tuple[Person, ...]]
    strangers: dict[Split, tuple[str, ...]]

    @property
    def people(self) -> tuple[Person, ...]:
        return self.splits["sft"] + self.splits["practice"] + self.splits["test"]

    @staticmethod
    def build(seed: int = 0, people: int = 100) -> "World":
        """Make a world of `people` persons. Raises `UsageError` for fewer than 8 or too many."""
        most = len(VALUES["pet"])
        if not 8 <= people <= most:
            raise UsageError(f"a pocketworld cannot have {people} people", f"choose a number from 8 to {most}")
        rng = random.Random(f"pocketworld {seed}")
        names = [(start + end, "she") for start in NAME_STARTS for end in FEMALE_ENDS]
        names += [(start + end, "he") for start in NAME_STARTS for end in MALE_ENDS]
        rng.shuffle(names)
        pets = rng.sample(VALUES["pet"], people)
        everybody = [
            Person(name, pronoun, pet=pet, **{a: rng.choice(VALUES[a]) for a in ATTRIBUTES if a != "pet"})
            for (name, pronoun), pet in zip(names, pets, strict=False)
        ]
        return World(seed, split_up(everybody), split_up([name for name, _ in names[people:]]))


def split_up(items: Sequence[T]) -> dict[Split, tuple[T, ...]]:
    """Cut shuffled `items` into the three splits by their shares."""
    first = round(len(items) * SFT_SHARE)
    second = first + round(len(items) * PRACTICE_SHARE)
    return {"sft": tuple(items[:first]), "practice": tuple(items[first:second]), "test": tuple(items[second:])}
