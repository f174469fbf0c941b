"""The stories of the generator: who owns what, and how each relation between two quantities is worded.

Slots of a wording (quantity X is defined from quantity Y, or from Y and Z):
    {X} {Y} {Z}  owners               {x} {y}  what they own        {V} {v}  the verb: "has", "have"
    {r}          quantity Y named in a sentence about X: "Ann", "pears" or "Ann has pears"
    {R}          quantity X named in a sentence about Y             {Ys}     "Ann's pears"
    {k} {n} {m}  numbers of the question                            {t} {f}  k as "twice", k as "half"
Slots of an event: {S} the quantity so far ("Tom's apples", then "these apples"), {u} its unit, {k} a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Operator = Literal["+", "-", "*", "/"]


@dataclass(frozen=True, slots=True)
class Item:
    """What an owner has. phrase: "miles by bus"; short, after a comparison: "by bus"; label, in a step: "bus miles"."""

    phrase: str
    short: str
    label: str

    @property
    def unit(self) -> str:
        """The plain noun: "miles"."""
        return self.phrase.removesuffix(self.short).strip() or self.phrase

    @property
    def part(self) -> str:
        """What the phrase adds to the noun: " by bus", or empty."""
        return self.phrase.removeprefix(self.unit)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens to a quantity at the end of a story, and costs one operation.

    takes: what it can happen to: "things" (the story's items), "dollars", or the unit of an earlier event.
    unit: the new unit, None if it stays.
    """

    takes: tuple[str, ...]
    operator: Operator
    texts: tuple[str, ...]
    label: str
    question: str
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """A setting.

    packs: wordings of n * m things, m a multiple of `pack_unit`. facts: numbers that never matter.
    whole, later: the quantity that events happen to, at first and after the first event; {s} is a part such as
        " in May", or empty.
    """

    name: str
    owners: tuple[str, ...]
    items: tuple[Item, ...]
    verb: tuple[str, str]
    openers: tuple[str, ...]
    packs: tuple[str, ...]
    events: tuple[Event, ...]
    facts: tuple[str, ...]
    wording: dict[str, tuple[str, ...]]
    pack_unit: int = 1
    whole: str = "the {u} of {X}{s}"
    later: str = "these {u}"

    @property
    def people(self) -> bool:
        """Whether the owners are people."""
        return self.owners is PEOPLE


PEOPLE = ("Tom", "Ann", "Ben", "Mia", "Sam", "Eva", "Leo", "Zoe", "Max", "Ivy", "Dan", "Kim")

FRACTIONS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}

WORDING: dict[str, tuple[str, ...]] = {
    "given": ("{X} {V} {k} {x}.",),
    "more": (
        "{X} {V} {k} more {x} than {r}.",
        "{X} {V} {k} more {x} than {r}.",
        "{X} {V} as many {x} as {r}, plus {k} more.",
        "{Y} {V} {k} fewer {y} than {R}.",
    ),
    "fewer": (
        "{X} {V} {k} fewer {x} than {r}.",
        "{X} {V} {k} fewer {x} than {r}.",
        "{Y} {V} {k} more {y} than {R}.",
    ),
    "times": (
        "{X} {V} {t} as many {x} as {r}.",
        "{X} {V} {t} as many {x} as {r}.",
        "For each of {Ys}, {X} {V} {k} {x}.",
        "{Y} {V} {f} as many {y} as {R}.",
    ),
    "fraction": (
        "{X} {V} {f} as many {x} as {r}.",
        "{X} {V} {f} as many {x} as {r}.",
        "{Y} {V} {t} as many {y} as {R}.",
    ),
    "rest": ("Together, {X} and {Y} {v} {k} {x}.", "{X} and {Y} {v} {k} {x} in total."),
    "sum": ("{X} {V} as many {x} as {Y} and {Z} together.", "{X} {V} as many {x} as {Y} and {Z} combined."),
    "difference": ("{X} and {Z} together {v} as many {x} as {Y}.",),
    "ask": ("How many {x} does {X} {v}?",),
    "ask sum": ("How many {x} do {Y} and {Z} {v} together?", "How many {x} do {Y} and {Z} {v} in total?"),
    "ask difference": ("How many more {x} does {Y} {v} than {Z}?", "How many fewer {x} does {Z} {v} than {Y}?"),
}

PRICE_WORDING: dict[str, tuple[str, ...]] = {
    **WORDING,
    "more": (
        "{X} costs {k} dollars more than {Y}.",
        "{X} costs as much as {Y}, plus {k} dollars.",
        "{Y} costs {k} dollars less than {X}.",
    ),
    "fewer": ("{X} costs {k} dollars less than {Y}.", "{Y} costs {k} dollars more than {X}."),
    "times": ("{X} costs {t} as much as {Y}.", "{Y} costs {f} as much as {X}."),
    "fraction": ("{X} costs {f} as much as {Y}.", "{Y} costs {t} as much as {X}."),
    "sum": ("{X} costs as much as {Y} and {Z} together.", "{X} costs the same as {Y} and {Z} combined."),
    "difference": ("{X} and {Z} together cost as much as {Y}.",),
    "ask": ("How many dollars does {X} cost?", "What is the price of {X} in dollars?"),
    "ask difference": ("How many dollars more does {Y} cost than {Z}?",),
}


def _items(*names: str) -> tuple[Item, ...]:
    return tuple(Item(name, name, name) for name in names)


def _parts(noun: str, preposition: str, *names: str) -> tuple[Item, ...]:
    return tuple(Item(f"{noun} {preposition} {name}", f"{preposition} {name}", f"{name} {noun}") for name in names)


def _lose(*texts: str) -> Event:
    return Event(("things",), "-", texts, "{u} left", "How many {u} are left?")


def _gain(*texts: str) -> Event:
    return Event(("things",), "+", texts, "{u} now", "How many {u} are there now?")


def _pack(container: str) -> Event:
    text = "Then {S} are packed into " + container + " of {k}."
    return Event(("things",), "/", (text,), container, "How many " + container + " are there?", container)


def _per_unit(takes: tuple[str, ...], unit: str, *texts: str) -> Event:
    return Event(takes, "*", texts, unit, "How many " + unit + " is that in all?", unit)


SHARE = Event(
    ("things", "dollars"),
    "/",
    ("Then {S} are shared equally by {k} friends.", "Then {k} friends share {S} equally."),
    "each friend's {u}",
    "How many {u} does each friend get?",
    "shared",
)
SPEND = Event(
    ("dollars",),
    "-",
    ("Then {k} of {S} are spent on lunch.", "Then {k} of {S} are used to pay a worker."),
    "dollars left",
    "How many dollars are left?",
)
GIFT = Event(
    ("dollars",),
    "+",
    ("Then {k} dollars are added to {S} as a gift.",),
    "dollars now",
    "How many dollars are there now?",
)
MONEY = (SPEND, GIFT, SHARE)

STORIES: tuple[Story, ...] = (
    Story(
        "market",
        PEOPLE,
        _items("apples", "pears", "plums", "lemons"),
        ("picks", "pick"),
        ("It is a sunny day in the garden.", "Some friends are in the garden."),
        ("{X} picks {n} baskets of {m} {x}.", "{X} fills {n} baskets with {m} {x} in each basket."),
        (
            _lose("Then {k} of {S} are eaten.", "Then {k} of {S} are given away."),
            _gain("Then {k} more {u} are added to {S}."),
            _pack("bags"),
            _per_unit(("bags",), "dollars", "Each bag is sold for {k} dollars."),
            _per_unit(("things",), "dollars", "Then {S} are sold for {k} dollars each."),
            *MONEY,
        ),
        ("The garden has {k} trees.", "The market is open {k} days a week."),
        WORDING,
    ),
    Story(
        "collection",
        PEOPLE,
        _items("shells", "stones", "stamps", "coins"),
        ("has", "have"),
        ("Some friends collect small things.", "It is a rainy day at home."),
        ("{X} has {n} boxes with {m} {x} in each box.", "{X} keeps {m} {x} in each of {n} boxes."),
        (
            _lose("Then {k} of {S} are lost.", "Then {k} of {S} are given away."),
            _gain("Then {k} more {u} are found and added to {S}."),
            _pack("boxes"),
            SHARE,
            _per_unit(("things",), "dollars", "Then {S} are sold for {k} dollars each."),
            SPEND,
        ),
        ("The house has {k} rooms.", "The friends meet {k} days a week."),
        WORDING,
    ),
    Story(
        "bakery",
        PEOPLE,
        _items("cakes", "cookies", "pies", "rolls"),
        ("bakes", "bake"),
        ("The bakery is busy this week.", "Some friends work in a bakery."),
        ("{X} bakes {n} trays with {m} {x} on each tray.", "{X} bakes {m} {x} an hour for {n} hours."),
        (
            _lose("Then {k} of {S} are burned.", "Then {k} of {S} are eaten."),
            _pack("boxes"),
            _per_unit(("boxes",), "dollars", "Each box is sold for {k} dollars."),
            _per_unit(("things",), "dollars", "Then {S} are sold for {k} dollars each."),
            *MONEY,
        ),
        ("The bakery has {k} ovens.", "The bakery is open {k} days a week."),
        WORDING,
    ),
    Story(
        "farm",
        ("the red barn", "the blue barn", "the green barn", "the old barn", "the new barn", "the big barn"),
        _items("cows", "hens", "goats", "sheep"),
        ("has", "have"),
        ("A farmer counts the animals.", "It is a sunny day on the farm."),
        ("{X} has {n} pens with {m} {x} in each pen.", "In {X} there are {n} pens of {m} {x}."),
        (
            _lose("Then {k} of {S} are sold."),
            _gain("Then {k} more {u} are bought and added to {S}."),
            Event(
                ("things",),
                "/",
                ("Then {S} are put into groups of {k}.",),
                "groups",
                "How many groups are there?",
                "groups",
            ),
            _per_unit(("things",), "bags of hay", "Each week, {S} eat {k} bags of hay each."),
        ),
        ("The farm has {k} workers.", "The farm is {k} miles from town."),
        WORDING,
    ),
    Story(
        "school",
        ("the art class", "the math class", "the music class", "the chess club", "the book club", "the sports club"),
        _items("pencils", "books", "chairs", "markers"),
        ("has", "have"),
        ("The school counts what it has.", "It is the first week of school."),
        ("{X} has {n} shelves with {m} {x} on each shelf.", "{X} has {n} boxes of {m} {x}."),
        (
            _lose("Then {k} of {S} are broken.", "Then {k} of {S} are lost."),
            _gain("Then {k} more {u} are bought and added to {S}."),
            _pack("boxes"),
            _per_unit(("things",), "dollars", "To replace {S}, the school pays {k} dollars each."),
        ),
        ("The school has {k} teachers.", "School starts {k} weeks after the summer."),
        WORDING,
    ),
    Story(
        "travel",
        PEOPLE,
        _parts("miles", "by", "bus", "train", "car"),
        ("travels", "travel"),
        ("Some friends go on a long trip.", "It is the first week of the summer."),
        ("At {m} miles an hour, {X} travels {n} hours {s}.", "{X} travels {n} hours {s} at {m} miles an hour."),
        (
            Event(("things",), "-", ("So far, {k} of {S} are done.",), "miles left", "How many miles are left?"),
            Event(
                ("things",),
                "/",
                ("It takes {k} days to travel {S}, with the same distance each day.",),
                "miles each day",
                "How many miles is that each day?",
                "daily",
            ),
            _per_unit(("things",), "dollars", "Each of {S} costs {k} dollars."),
            *MONEY,
        ),
        ("The trip starts {k} hours after lunch.", "The friends carry {k} bags."),
        WORDING,
        pack_unit=5,
    ),
    Story(
        "reading",
        PEOPLE,
        _parts("pages", "on", "Monday", "Friday", "Sunday"),
        ("reads", "read"),
        ("Some friends read long books.", "It is a rainy week at home."),
        ("{X} reads {n} books of {m} pages {s}.", "{X} reads {m} pages an hour for {n} hours {s}."),
        (
            Event(
                ("things",), "-", ("Of {S}, {k} show only a picture.",), "pages left", "How many other pages are left?"
            ),
            _per_unit(("things",), "minutes", "Each of {S} takes {k} minutes."),
            Event(
                ("things",),
                "/",
                ("There are {k} equal parts in {S}.",),
                "pages in each part",
                "How many pages is each part?",
                "part",
            ),
        ),
        ("The room has {k} shelves.", "The house has {k} rooms."),
        WORDING,
    ),
    Story(
        "savings",
        PEOPLE,
        _parts("dollars", "in", "May", "June", "July"),
        ("saves", "save"),
        ("Some friends save money for a trip.", "It is a busy summer."),
        ("{X} saves {m} dollars a week for {n} weeks {s}.", "{X} works {n} hours {s} and saves {m} dollars an hour."),
        (
            *MONEY,
            Event(
                ("dollars",),
                "/",
                ("Then {S} are used to buy games for {k} dollars each.",),
                "games",
                "How many games are bought?",
                "games",
            ),
        ),
        ("The friends work {k} days a week.", "The house has {k} rooms."),
        WORDING,
    ),
    Story(
        "cooking",
        ("the cake", "the pie", "the bread", "the soup", "the stew", "the salad"),
        (
            *_items("eggs", "carrots"),
            Item("cups of milk", "cups of milk", "milk cups"),
            Item("cups of flour", "cups of flour", "flour cups"),
        ),
        ("needs", "need"),
        ("A cook plans a big dinner.", "The kitchen is busy this week."),
        ("{X} needs {n} bowls with {m} {x} in each bowl.", "{X} is for {n} tables and needs {m} {x} for each table."),
        (
            Event(
                ("things",),
                "-",
                ("Of {S}, {k} are already in the kitchen.",),
                "{u} to buy",
                "How many {u} are left to buy?",
            ),
            _gain("Then {k} more {u} are added to {S} for a guest."),
            _pack("packs"),
            _per_unit(("packs",), "dollars", "Each pack costs {k} dollars."),
            _per_unit(("things",), "dollars", "In the shop, {S} cost {k} dollars each."),
            SHARE,
        ),
        ("The dinner starts in {k} hours.", "The kitchen has {k} ovens."),
        WORDING,
    ),
    Story(
        "shop",
        ("a pen", "a book", "a bag", "a lamp", "a hat", "a coat", "a ball", "a kite", "a clock", "a chair", "a desk"),
        (Item("dollars", "dollars", "price"),),
        ("costs", "cost"),
        ("The shop in town has new prices.", "A teacher is in the shop."),
        (),
        (
            Event(
                ("dollars",),
                "-",
                ("A coupon takes {k} dollars off {S}.",),
                "new price",
                "How many dollars are left to pay?",
            ),
            Event(
                ("dollars",), "*", ("A school pays {S} {k} times.",), "dollars paid", "How many dollars is that in all?"
            ),
            Event(
                ("dollars",),
                "+",
                ("Sending it adds {k} dollars to {S}.",),
                "dollars now",
                "How many dollars is it now?",
            ),
            Event(
                ("dollars",),
                "/",
                ("Then {k} friends share {S} equally.",),
                "each friend's dollars",
                "How many dollars does each friend pay?",
                "shared",
            ),
        ),
        ("The shop is open {k} days a week.", "The shop has {k} workers."),
        PRICE_WORDING,
        whole="the price of {X}",
        later="this cost",
    ),
)
