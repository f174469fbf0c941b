"""Grade-school word problems made from a seed: a dependency graph of quantities, rendered to text.

A quantity is what one owner has of one item ("Tom's apples"). It is given as a number, or defined by one operation on
other quantities ("Tom has 5 more apples than Ann"). The question asks for one quantity, for the sum or difference of
two, or for what is left after a few events (sold, packed, shared). Difficulty is the number of operations and of
distractors: quantities and facts with numbers that the answer does not need. Sentences may come in any order, and a
relation may be worded backwards ("Ann has 5 fewer apples than Tom"), so a solver must choose what to compute next and
from which numbers; the arithmetic itself is easy.

The graph is grown from the asked quantity down, each node taking one operation of the budget and passing the rest to
its operands, so that every operation is needed. Each problem depends on (seed, split, index) and, to avoid a repeated
question, on the problems before it; which split a question may belong to is decided by its hash, so that the two
splits can never share one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from qstar.config import GeneratorConfig
from qstar.problems.generator_stories import FRACTIONS, STORIES, Item, Operator, Story
from qstar.problems.problem import Problem, question_hash
from qstar.types import derive_seed

MAX_VALUE = 2000
"""Largest value of any quantity; the smallest is 2."""

TEST_SHARE = 8
"""One of so many possible questions is reserved for the test split."""

_COMPUTE: dict[Operator, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b if a % b == 0 else 0,
}


class _DeadEndError(Exception):
    """The story ran out of names or of valid numbers: draw again."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantity:
    """A node of the graph: a given number (operator None) or one operation on two operands."""

    owner: str
    item: Item
    value: int
    operator: Operator | None = None
    operands: tuple[int | Quantity, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """A problem before it gets an id. needed: the sentences that matter; extra: the distractors."""

    question: str
    needed: tuple[str, ...]
    extra: tuple[str, ...]
    steps: tuple[str, ...]
    values: tuple[int, ...]


def generate(config: GeneratorConfig, split: Literal["train", "test"]) -> list[Problem]:
    """`config.train` or `config.test` distinct problems; a larger count only appends."""
    count = config.train if split == "train" else config.test
    problems: dict[str, Problem] = {}
    for index in range(count):
        rng = random.Random(derive_seed(config.seed, "generator", split, index))
        while True:
            draft = draw(rng, config)
            digest = question_hash(draft.question)
            reserved = derive_seed("split", digest) % TEST_SHARE == 0
            if reserved == (split == "test") and digest not in problems:
                break
        problems[digest] = Problem(
            id=digest[:16],
            question=draft.question,
            answer=str(draft.values[-1]),
            steps=draft.steps,
            values=tuple(map(str, draft.values)),
            operations=len(draft.steps),
            source="generator",
        )
    return list(problems.values())


def draw(rng: random.Random, config: GeneratorConfig) -> Draft:
    """One problem with operations and distractors drawn uniformly from the ranges of `config`."""
    operations = rng.randint(config.min_operations, config.max_operations)
    distractors = rng.randint(0, config.max_distractors)
    while True:
        try:
            return _Writer(rng, rng.choice(STORIES[: config.stories]), operations).write(operations, distractors)
        except _DeadEndError:
            continue


class _Line(NamedTuple):
    """One step of the solution."""

    label: str
    expression: str
    value: int


class _Writer:
    """Writes one problem of one story."""

    def __init__(self, rng: random.Random, story: Story, operations: int) -> None:
        self.rng, self.story = rng, story
        items = rng.randint(1, min(3, len(story.items)))
        # Few names for the size of the graph keep the cast small, but every quantity needs a name of its own.
        names = operations + 4 if items == 1 else 3 + operations // 2
        self.items = rng.sample(story.items, items)
        self.owners = rng.sample(story.owners, min(names, len(story.owners)))
        self.quantities: list[Quantity] = []
        self.used: set[tuple[str, Item]] = set()
        self.sentences: list[str] = []

    def write(self, operations: int, distractors: int) -> Draft:
        """The whole problem."""
        rng = self.rng
        events = rng.randint(0, min(3, operations - 1))
        steps: list[_Line] = []
        item, subject, question = self._asked(operations - events, events > 0, steps)
        tail: list[str] = []
        if events:
            question = self._events(events, subject, item, steps, tail)
        needed = list(self.sentences)
        extra = [self._distractor() for _ in range(distractors)]
        body = list(needed)
        if rng.random() < 0.6:
            rng.shuffle(body)
        for sentence in extra:
            body.insert(rng.randint(0, len(body)), sentence)
        opener = [rng.choice(self.story.openers)] if rng.random() < 0.5 else []
        sentences = [text[0].upper() + text[1:] for text in [*opener, *body, *tail, question]]
        return Draft(
            question=" ".join(sentences),
            needed=(*needed, *tail, question),
            extra=tuple(extra),
            steps=tuple(f"{line.label}: {line.expression} = {line.value}" for line in steps),
            values=tuple(line.value for line in steps),
        )

    def _asked(self, operations: int, plural: bool, steps: list[_Line]) -> tuple[Item, str, str]:
        """Build and solve what the question is about; returns its item, its name for events, and the question.

        plural: events follow, which can happen to one quantity or to a sum but not to a difference.
        """
        rng, item = self.rng, self.rng.choice(self.items)
        kinds = ["ask", "ask sum"] if plural else ["ask", "ask sum", "ask difference"]
        kind = rng.choice(kinds) if operations >= 2 else "ask"
        if kind == "ask":
            root = self._build(*self._name(item), operations)
            self._solve(root, steps, set())
            owners = {"X": root.owner}
        else:
            first, second = self._pair(item, operations - 1, "")
            if kind == "ask difference" and first.value < second.value:
                first, second = second, first
            seen: set[int] = set()
            for quantity in rng.sample([first, second], 2):
                self._solve(quantity, steps, seen)
            operator: Operator = "+" if kind == "ask sum" else "-"
            value = self._combined(operator, first, second)
            label = f"total {item.label}" if kind == "ask sum" else f"extra {item.label}"
            steps.append(_Line(label, f"{first.value} {operator} {second.value}", value))
            owners = {"X": f"{first.owner} and {second.owner}", "Y": first.owner, "Z": second.owner}
        slots = {"x": item.phrase, "u": item.unit, "s": item.part, "V": self.story.verb[0], "v": self.story.verb[1]}
        possessive = "{X}'s {x}" if kind == "ask" and self.story.people else self.story.whole
        question = rng.choice(self.story.wording[kind])
        return item, possessive.format_map(owners | slots), question.format_map(owners | slots)

    # The graph

    def _build(self, owner: str, item: Item, operations: int) -> Quantity:
        """A quantity that takes exactly `operations` operations to compute, with a sentence for each part."""
        rng = self.rng
        draw_shape = rng.random()
        if operations == 0:
            value = rng.choice((rng.randint(3, 40), 2 * rng.randint(2, 30), 6 * rng.randint(1, 12)))
            quantity = Quantity(owner, item, value)
            self._say("given", quantity, k=value)
        elif operations == 1 and draw_shape < 0.35 and self.story.packs:
            n, m = rng.randint(2, 9), rng.randint(2, 12) * self.story.pack_unit
            quantity = Quantity(owner, item, n * m, "*", (n, m))
            self.sentences.append(rng.choice(self.story.packs).format(X=owner, x=item.phrase, s=item.short, n=n, m=m))
        elif draw_shape > 0.7:
            first, second = self._pair(item, operations - 1, owner)
            if rng.random() < 0.3 and first.value != second.value:
                if first.value < second.value:
                    first, second = second, first
                value = self._combined("-", first, second)
                quantity = Quantity(owner, item, value, "-", (first, second))
                self._say("difference", quantity, first, second)
            else:
                value = self._combined("+", first, second)
                quantity = Quantity(owner, item, value, "+", (first, second))
                self._say("sum", quantity, first, second)
        else:
            base = self._build(*self._name(item, owner), operations - 1)
            quantity = self._relate(owner, item, base)
        self.quantities.append(quantity)
        return quantity

    def _pair(self, item: Item, operations: int, owner: str) -> tuple[Quantity, Quantity]:
        """Two quantities of one item, neither of them of `owner`, that take `operations` operations together."""
        rng = self.rng
        share = rng.random() < 0.4
        left = operations if share else rng.randint(0, operations)
        first = self._build(*self._name(item, owner, fixed=True), left)
        known = [q for q in self.quantities if q.item is item and q is not first and q.owner != owner]
        second = (
            rng.choice(known)
            if share and known
            else self._build(*self._name(item, owner, fixed=True), operations - left)
        )
        return (first, second) if rng.random() < 0.5 else (second, first)

    def _combined(self, operator: Operator, first: Quantity, second: Quantity) -> int:
        """The value of `first operator second`, refused where the text already states it in other words."""
        stated = (
            (second in first.operands and first.operator == "+")
            or (first in second.operands[:1] and second.operator == "-")
            if operator == "-"
            else any(b in a.operands[1:] and a.operator == "-" for a, b in ((first, second), (second, first)))
        )
        if stated:
            raise _DeadEndError
        return self._checked(operator, first.value, second.value)

    def _relate(self, owner: str, item: Item, base: Quantity) -> Quantity:
        """A quantity defined by one operation on `base` and a number."""
        rng, value = self.rng, base.value
        relations: list[tuple[str, Operator, int]] = [("more", "+", rng.randint(2, 30))]
        if value >= 5:
            relations.append(("fewer", "-", rng.randint(2, min(30, value - 2))))
        if value <= 100:
            relations += [("times", "*", rng.randint(2, 5))] * 2
        divisors = [k for k in FRACTIONS if value % k == 0 and value // k >= 2]
        if divisors:
            relations += [("fraction", "/", rng.choice(divisors))] * 2
        if item is base.item:
            relations.append(("rest", "-", value + rng.randint(3, 40)))
        relation, operator, k = rng.choice(relations)
        operands: tuple[int | Quantity, int | Quantity] = (k, base) if relation == "rest" else (base, k)
        result = k - value if relation == "rest" else self._checked(operator, value, k)
        quantity = Quantity(owner, item, result, operator, operands)
        self._say(relation, quantity, base, k=k)
        return quantity

    def _events(self, count: int, subject: str, item: Item, steps: list[_Line], tail: list[str]) -> str:
        """Append `count` events to the story and their steps; returns the question about the last one."""
        rng, unit, question, last = self.rng, item.unit, "", 0
        value = steps[-1].value
        left = list(self.story.events)
        for _ in range(count):
            choices = [
                (event, k)
                for event in left
                if unit in event.takes or ("things" in event.takes and unit == item.unit)
                for k in [self._event_number(event.operator, value)]
                if k and k != last  # the same number twice may undo the event before
            ]
            if not choices:
                raise _DeadEndError
            event, k = rng.choice(choices)
            last = k
            left.remove(event)
            tail.append(rng.choice(event.texts).format(S=subject, u=unit, k=k))
            result = self._checked(event.operator, value, k)
            steps.append(_Line(event.label.format(u=unit), f"{value} {event.operator} {k}", result))
            question, value = event.question.format(u=unit), result
            unit = event.unit or unit
            subject = self.story.later.format(u=unit)
        return question

    def _event_number(self, operator: Operator, value: int) -> int:
        """A number that the event can use on `value`, 0 if there is none."""
        rng = self.rng
        if operator == "+":
            return rng.randint(2, 40)
        if operator == "-":
            return rng.randint(2, min(60, value - 2)) if value >= 5 else 0
        if operator == "*":
            return rng.randint(2, 9) if value * 9 <= MAX_VALUE else 0
        divisors = [k for k in range(2, 11) if value % k == 0 and value // k >= 2]
        return rng.choice(divisors) if divisors else 0

    def _distractor(self) -> str:
        """A sentence with a number that the answer does not need."""
        rng = self.rng
        if rng.random() < 0.2:
            return rng.choice(self.story.facts).format(k=rng.randint(3, 7))
        before = len(self.sentences)
        owner, item = self._name(rng.choice(self.items))
        if rng.random() < 0.5:
            self._relate(owner, item, rng.choice(self.quantities))
        else:
            self._build(owner, item, 0)
        sentence = self.sentences[before]
        del self.sentences[before:]
        return sentence

    def _solve(self, quantity: Quantity, steps: list[_Line], seen: set[int]) -> None:
        """Append the steps that compute `quantity`, operands first, branches in random order."""
        if quantity.operator is None or id(quantity) in seen:
            return
        seen.add(id(quantity))
        for operand in self.rng.sample(quantity.operands, 2):
            if isinstance(operand, Quantity):
                self._solve(operand, steps, seen)
        left, right = (o.value if isinstance(o, Quantity) else o for o in quantity.operands)
        steps.append(_Line(self._label(quantity), f"{left} {quantity.operator} {right}", quantity.value))

    def _checked(self, operator: Operator, left: int, right: int) -> int:
        value = _COMPUTE[operator](left, right)
        if not 2 <= value <= MAX_VALUE:
            raise _DeadEndError
        return value

    # The text

    def _name(self, item: Item, owner: str = "", fixed: bool = False) -> tuple[str, Item]:
        """An unused name, most often of the same item, at times another item of `owner`; `fixed` forbids that."""
        rng = self.rng
        free = [(o, i) for o in self.owners for i in self.items if (o, i) not in self.used]
        same = [name for name in free if name[1] is item and name[0] != owner]
        own = [name for name in free if name[0] == owner]
        free = same if fixed or not owner else rng.choice((same, same, same, own, free)) or free
        if not free:
            raise _DeadEndError
        name = rng.choice(free)
        self.used.add(name)
        return name

    def _label(self, quantity: Quantity) -> str:
        """The name of a quantity in a step: "Tom's apples", "red barn cows"."""
        if self.story.people:
            return f"{quantity.owner}'s {quantity.item.label}"
        return f"{quantity.owner.split(' ', 1)[1]} {quantity.item.label}"

    def _reference(self, target: Quantity, sentence_about: Quantity) -> str:
        """How a sentence about one quantity names another one."""
        if target.item is sentence_about.item:
            return target.owner
        if target.owner == sentence_about.owner:
            return target.item.short
        return f"{target.owner} {self.story.verb[0]} {target.item.short}"

    def _say(
        self, relation: str, about: Quantity, base: Quantity | None = None, other: Quantity | None = None, k: int = 0
    ) -> None:
        """Append the sentence that defines `about`."""
        slots: dict[str, object] = {
            "X": about.owner,
            "x": about.item.phrase,
            "V": self.story.verb[0],
            "v": self.story.verb[1],
            "k": k,
            "t": "twice" if k == 2 else f"{k} times",
            "f": f"{FRACTIONS.get(k)}",
        }
        if base is not None:
            possessive = (
                f"{base.owner}'s {base.item.phrase}" if self.story.people else f"the {base.item.phrase} of {base.owner}"
            )
            slots |= {"Y": base.owner, "y": base.item.phrase, "Ys": possessive}
            slots |= {"r": self._reference(base, about), "R": self._reference(about, base)}
        if other is not None:
            slots["Z"] = other.owner
        self.sentences.append(self.rng.choice(self.story.wording[relation]).format_map(slots))
