"""Names, things and numbers that problems are made of, and which of them a split may use.

Half of what makes a test problem new is here: numbers that no training question shows, and sentence patterns that no
training question uses. The words themselves occur in both splits.
"""

import random
import zlib
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

Word = TypeVar("Word")
Split = Literal["train", "test"]

NAMES = (
    "Ana Ben Cara Dan Ella Finn Gina Hugo Iris Jack Kira Leo Mia Noah Olga Paul Rosa Sam Tara Uma Vera Will Yara "
    "Zoe Alma Boris Clara David Emil Fay Greta Hans Ines Jonas Karl Lena Marco Nina Oscar Petra Quinn Rita Simon "
    "Tom Ugo Viola Wanda Xena Yusuf Adam Bella Cyril Doris Erik Flora Gus Hana Ivan Julia Ken Lucy Max Nora Otto "
    "Pia Ralf Sara Theo Ursula Victor Wes Yoko Zack Amir Beth Carl Dina Eva Fred Agnes Albert Alice Alvin Amber "
    "Anton Arthur Astrid Barry Basil Bianca Bruno Camille Cecil Celia Chloe Colin Conrad Cora Dario Daphne Delia "
    "Denis Diego Dora Edgar Edith Elias Elsa Enzo Ernest Esther Ethan Eunice Ezra Felix Fiona Floyd Frank Freya "
    "Gavin Gemma George Gloria Gordon Grace Harold Hazel Heidi Helen Henry Hilda Holly Howard Igor Ingrid Irene "
    "Isaac Jasper Jenny Joel Judith Katrin Keith Kurt Laura Leon Lionel Louis Lydia Mabel Magnus Marta Maurice "
    "Melvin Mona Morris Nadia Naomi Neil Nigel Norman Odette Oliver Otis Owen Pamela Percy Philip Rachel Ramon "
    "Rene Robin Roger Ruth Sophie Stefan Stella Tamara Tanya Teresa Thelma Tobias Trevor Ulrich Valerie Vincent "
    "Walter Wilma Winston Yvonne Zelda"
).split()
THINGS = (
    "apples pears plums eggs nuts cakes pies rolls beans figs limes grapes books pens pencils stamps cards coins "
    "stickers marbles shells stones beads buttons toys dolls kites balls bats hats caps socks shirts scarves "
    "rings keys cups plates bowls forks spoons boxes bags jars cans bottles candles lamps chairs roses tulips "
    "trees seeds leaves birds ducks hens almonds anchors apricots badges bananas barrels basins beetles bells "
    "belts blankets bolts bracelets brushes buckets cabbages carrots cherries chestnuts clocks combs cookies "
    "cookers corks crackers crayons cushions daisies doughnuts drums envelopes feathers fences flutes gloves "
    "goats hammers helmets herbs hooks jackets kettles ladders lemons lilies magnets mangoes melons mirrors "
    "muffins mugs mushrooms napkins needles notebooks olives onions oranges paints pancakes papers peaches "
    "pebbles peppers pillows pumpkins ribbons rockets rulers sandals saddles shovels spades sponges statues "
    "straws towels trumpets turnips umbrellas vases violins waffles walnuts whistles fish sheep cows tickets "
    "letters photos posters maps songs games puzzles bricks tiles nails screws ropes flags tokens"
).split()
CONTAINERS = "boxes bags baskets crates shelves rows packs jars trays drawers tins piles".split()
PLACES = "shop market school park house farm garden library office station".split()
COLOURS = "red blue green yellow black white brown pink".split()
TIMES = (
    "",
    "Then ",
    "After that, ",
    "Later, ",
    "Next, ",
    "In the evening, ",
    "A day later, ",
    "On Monday, ",
    "At noon, ",
)
HELD_OUT_NUMBERS = frozenset((13, 18, 24, 29, 31, 36))
"""No question of the training split shows one of these; every question of the test split that has numbers of that size
does."""
HELD_OUT_PATTERNS = 6
"""One in so many sentence patterns is kept for the test split."""


def pattern_split(pattern: str) -> Split:
    """The split that a sentence pattern belongs to; fixed by its text."""
    return "test" if zlib.crc32(pattern.encode()) % HELD_OUT_PATTERNS == 0 else "train"


class Draw:
    """Random choices for one problem, and a record of the patterns and numbers that were used."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        """Draw from `rng` for one split."""
        self.rng = rng
        self.split = split
        self.templates: set[str] = set()
        self.numbers: set[int] = set()  # from ranges with held-out ones among them

    def number(self, low: int, high: int, *, step: int = 1) -> int:
        """A number of the question, from `low` to `high`; held-out ones are for the test split."""
        choices = list(range(low, high + 1, step))
        held_out = [value for value in choices if value in HELD_OUT_NUMBERS]
        if self.split == "train":
            choices = [value for value in choices if value not in HELD_OUT_NUMBERS]
        elif self.rng.random() < 0.5:
            choices = held_out or choices
        value = self.rng.choice(choices)
        if held_out:
            self.numbers.add(value)
        return value

    def say(self, patterns: Sequence[str], **words: object) -> str:
        """Fill one of several sentence patterns that mean the same; test problems prefer held-out ones."""
        usable = [pattern for pattern in patterns if pattern_split(pattern) == "train"]
        if self.split == "test":
            usable = [pattern for pattern in patterns if pattern_split(pattern) == "test"] or usable
        pattern = self.rng.choice(usable)  # every list of patterns has some for training
        self.templates.add(pattern)
        return pattern.format(**words)

    def when(self) -> str:
        """When something happens, or nothing; half of the sentences say so."""
        return self.rng.choice(TIMES) if self.rng.random() < 0.5 else ""

    def names(self, count: int) -> list[str]:
        """Different people."""
        return self.rng.sample(NAMES, count)

    def one(self, words: Sequence[Word]) -> Word:
        """Any of some words, or of some numbers that the question does not show."""
        return self.rng.choice(words)

    def is_new(self) -> bool:
        """Whether the question shows a held-out pattern and, if it has numbers of their size, a held-out number."""
        return any(pattern_split(pattern) == "test" for pattern in self.templates) and (
            not self.numbers or bool(self.numbers & HELD_OUT_NUMBERS)
        )

    def is_old(self) -> bool:
        """Whether the question shows nothing that is held out: a training question."""
        return not any(pattern_split(pattern) == "test" for pattern in self.templates) and not (
            self.numbers & HELD_OUT_NUMBERS
        )


def spread(phrases: Iterable[str], frames: Iterable[str]) -> list[str]:
    """Every phrase in every frame: `{X}` of a frame is the phrase."""
    frames = list(frames)
    return [frame.replace("{X}", phrase) for phrase in phrases for frame in frames]
