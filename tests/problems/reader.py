"""Solves a generated problem from its sentences alone: reads each as a linear equation, then substitutes.

Independent of the generator's graph and steps: only the vocabulary of its stories is shared. Reads questions about one
quantity or about the sum or difference of two, in every story but the one about prices; not questions about events.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from qstar.problems.generator_stories import STORIES, Story

FACTOR = {
    "twice": Fraction(2),
    "half": Fraction(1, 2),
    "a third": Fraction(1, 3),
    "a quarter": Fraction(1, 4),
    "a fifth": Fraction(1, 5),
}

Name = tuple[str, str]
"""An owner and the phrase of what it has."""


class Equation(NamedTuple):
    """sum of factor * quantity = constant."""

    terms: dict[Name, Fraction]
    constant: Fraction


class Reader:
    """Reads sentences of one story."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.phrases = {item.short: item.phrase for item in story.items} | {i.phrase: i.phrase for i in story.items}
        owner = "|".join(story.owners)
        item = "|".join(sorted(self.phrases, key=len, reverse=True))
        verb = "|".join(story.verb)
        times = "|".join(FACTOR) + r"|\d+ times"
        other = rf"(?:(?P<y>{owner}) (?:{verb}) (?P<b>{item})|(?P<y2>{owner})|(?P<b2>{item}))"
        subject = rf"(?P<x>{owner}) (?:{verb})"
        self.forms = [
            (kind, re.compile(form))
            for kind, form in (
                ("given", rf"{subject} (?P<k>\d+) (?P<a>{item})"),
                ("more", rf"{subject} (?P<k>\d+) more (?P<a>{item}) than {other}"),
                ("more", rf"{subject} as many (?P<a>{item}) as {other}, plus (?P<k>\d+) more"),
                ("fewer", rf"{subject} (?P<k>\d+) fewer (?P<a>{item}) than {other}"),
                ("times", rf"{subject} (?P<t>{times}) as many (?P<a>{item}) as {other}"),
                ("times", rf"For each of (?P<y>{owner})'s (?P<b>{item}), {subject} (?P<k>\d+) (?P<a>{item})"),
                ("times", rf"For each of the (?P<b>{item}) of (?P<y>{owner}), {subject} (?P<k>\d+) (?P<a>{item})"),
                ("total", rf"Together, (?P<x>{owner}) and (?P<y>{owner}) (?:{verb}) (?P<k>\d+) (?P<a>{item})"),
                ("total", rf"(?P<x>{owner}) and (?P<y>{owner}) (?:{verb}) (?P<k>\d+) (?P<a>{item}) in total"),
                (
                    "sum",
                    rf"{subject} as many (?P<a>{item}) as (?P<y>{owner}) and (?P<z>{owner}) (?:together|combined)",
                ),
                (
                    "rest",
                    rf"(?P<x>{owner}) and (?P<z>{owner}) together (?:{verb}) as many (?P<a>{item}) as (?P<y>{owner})",
                ),
            )
        ]
        self.asks = [
            (sign, re.compile(form))
            for sign, form in (
                (0, rf"How many (?P<a>{item}) does (?P<y>{owner}) (?:{verb})\?"),
                (
                    1,
                    rf"How many (?P<a>{item}) do (?P<y>{owner}) and (?P<z>{owner}) (?:{verb}) (?:together|in total)\?",
                ),
                (-1, rf"How many more (?P<a>{item}) does (?P<y>{owner}) (?:{verb}) than (?P<z>{owner})\?"),
                (-1, rf"How many fewer (?P<a>{item}) does (?P<z>{owner}) (?:{verb}) than (?P<y>{owner})\?"),
            )
        ]
        self.owner = re.compile(rf"\b(?:{owner})\b")
        self.item = re.compile(rf"\b(?:{item})\b")

    def equation(self, sentence: str) -> Equation | None:
        """What a sentence says, None if it names no owner and so says nothing about a quantity."""
        for kind, form in self.forms:
            if match := form.fullmatch(sentence.removesuffix(".")):
                return self._equation(kind, match.groupdict())
        numbers, owners, items = re.findall(r"\d+", sentence), self.owner.findall(sentence), self.item.findall(sentence)
        if not owners:
            return None
        # What is left is n packs of m: one owner, one item, two numbers.
        assert (len(numbers), len(set(owners)), len(set(items))) == (2, 1, 1), sentence
        return Equation({(owners[0], self.phrases[items[0]]): Fraction(1)}, Fraction(int(numbers[0]) * int(numbers[1])))

    def _equation(self, kind: str, found: dict[str, str | None]) -> Equation:
        item = self.phrases[found["a"] or ""]
        x = (found["x"] or "", item)
        k = Fraction(found.get("k") or 0)
        if kind == "given":
            return Equation({x: Fraction(1)}, k)
        if kind in ("sum", "rest"):
            y, z = (found["y"] or "", item), (found["z"] or "", item)
            whole, part = (x, y) if kind == "sum" else (y, x)
            return Equation({whole: Fraction(1), part: Fraction(-1), z: Fraction(-1)}, Fraction(0))
        y = (
            found.get("y") or found.get("y2") or x[0],
            self.phrases[found.get("b") or found.get("b2") or found["a"] or ""],
        )
        assert x != y
        if kind == "total":
            return Equation({x: Fraction(1), y: Fraction(1)}, k)
        if kind == "times":
            text = found.get("t")
            factor = k if text is None else FACTOR.get(text) or Fraction(text.split()[0])
            return Equation({x: Fraction(1), y: -factor}, Fraction(0))
        return Equation({x: Fraction(1), y: Fraction(-1)}, k if kind == "more" else -k)

    def asked(self, question: str) -> tuple[int, Name, Name] | None:
        """(sign, first, second) of the question; sign 0 for one quantity."""
        for sign, form in self.asks:
            if match := form.fullmatch(question):
                found = match.groupdict()
                item = self.phrases[found["a"]]
                return sign, (found["y"], item), (found.get("z") or found["y"], item)
        return None


READERS = [Reader(story) for story in STORIES if story.name != "shop"]


def read(sentences: Sequence[str]) -> tuple[Fraction | None, dict[Name, Fraction], Story] | None:
    """(answer, every quantity that follows, story); the answer is None if it does not follow from the sentences.

    Returns None for a question this reader does not know. Raises AssertionError if a sentence cannot be read or the
    sentences contradict each other.
    """
    *body, question = sentences
    found = [(reader, asked) for reader in READERS if (asked := reader.asked(question))]
    if not found:
        return None
    reader, asked = found[0]
    known: dict[Name, Fraction] = {}
    equations = [equation for equation in map(reader.equation, body) if equation]
    while True:
        before = len(known)
        for terms, constant in equations:
            unknown = [name for name in terms if name not in known]
            rest = constant - sum(factor * known[name] for name, factor in terms.items() if name in known)
            if len(unknown) == 1:
                known[unknown[0]] = rest / terms[unknown[0]]
            assert unknown or rest == 0, sentences
        if len(known) == before:
            break
    sign, first, second = asked
    if first not in known or second not in known:
        return None, known, reader.story
    return known[first] + sign * known[second], known, reader.story
