"""Search trees read back from what searches wrote: a run, one of its journals, or the tree of one `qstar solve`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from qstar.errors import UserError
from qstar.grading.checks import check_path
from qstar.grading.steps import equations
from qstar.runs.journal import Journal
from qstar.search import STRATEGIES, Rule
from qstar.search.node import Node, Sample, Tree
from qstar.search.select import select
from qstar.types import Step

Check = Literal["holds", "false", "unknown", ""]
"""What became of a step's equations: all hold, one is false, one could not be computed, or there is none."""

MARKS: dict[Check, str] = {"holds": "✓", "false": "✗", "unknown": "?", "": ""}

BANDS = 7
"""Colours of the scale of Q."""

MAX_MERGED = 100_000
"""A node that claims to stand for more samples than this is refused as damaged."""

TREE_HINT = "write one with `qstar search RUN` or `qstar solve QUESTION --trace FILE`"

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)


@dataclass(frozen=True)
class Searched:
    """A finished search.

    source: where it was read. gold: the right answer as canonical number text, None if it is not known.
    answer: the chosen answer. node: the terminal node it was read from. majority: the most common answer.
    shares: weight of each answer in the vote. error: why the search ended early.
    """

    source: str
    tree: Tree
    gold: str | None
    answer: str | None
    node: Node | None
    majority: str | None
    shares: dict[str, float]
    error: str | None

    @property
    def key(self) -> str:
        """The problem's id."""
        return self.tree.problem_id

    @property
    def status(self) -> Literal["solved", "unsolved", "error", "unknown"]:
        """Whether the chosen answer is right; unknown without a right answer to compare with."""
        if self.error is not None:
            return "error"
        if self.gold is None:
            return "unknown"
        return "solved" if self.answer == self.gold else "unsolved"

    @property
    def disagreement(self) -> bool:
        """Whether a plain majority of the solutions chooses another answer."""
        return self.majority != self.answer

    def right(self, node: Node) -> bool | None:
        """Whether a terminal node has the right answer; None if that is not known."""
        return None if self.gold is None else node.answer == self.gold

    def lucky(self, node: Node) -> bool:
        """Whether a terminal node has the right answer for a doubtful reason.

        An equation before it is false, a number comes from nowhere, or the answer is not the last result. In the quick
        start's audit (`qstar traces audit`) all right answers with one of these signs were lucky.
        """
        if self.right(node) is not True:
            return False
        path = [step.step.text for step in self.tree.path(node) if step.step is not None]
        checks = check_path(self.tree.question, path)
        return checks.false + checks.unexplained + checks.detached > 0


def check(node: Node) -> tuple[Check, tuple[str, ...]]:
    """What became of the equations of a node's step, and those that do not hold, as written."""
    return _check(node.step.text) if node.step else ("", ())


@lru_cache(maxsize=100_000)
def _check(text: str) -> tuple[Check, tuple[str, ...]]:
    found = equations(text)
    bad = tuple(equation.text for equation in found if not equation.holds)
    if any(equation.holds is False for equation in found):
        return "false", bad
    return ("unknown", bad) if bad else ("holds" if found else "", ())


def step_text(node: Node) -> str:
    """The step of a node without its line end; empty at the root."""
    return node.step.text.rstrip("\n") if node.step else ""


def band(value: float) -> int:
    """The place of V in [0, 1] on the colour scale: 0 to BANDS - 1."""
    return min(BANDS - 1, max(0, int(value * BANDS)))


def visible(text: str) -> str:
    """Text in which control characters, and marks that reorder or hide text, are written out, as in <U+202E>."""
    return _UNSEEN.sub(lambda match: f"<U+{ord(match[0]):04X}>", text)


def journals(path: Path) -> list[Path]:
    """The journals of search trees in a run, searches of their own first. Raises UserError if there is none."""
    found = [*sorted((path / "searches").glob("*.jsonl")), path / "search" / "trees.jsonl"]
    found = [file for file in found if file.is_file()]
    if not found:
        raise UserError(f"{path} holds no search tree; {TREE_HINT}")
    return found


def read_searches(path: Path, problem: str | None = None) -> Iterator[Searched]:
    """The searches of a run folder, a journal (.jsonl) or one tree (.json), in file order.

    problem: only the problem with this id. Raises UserError, while reading, for a file that holds something else.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; {TREE_HINT}")
    if path.is_dir():
        for journal in journals(path):
            yield from _read_journal(journal, str(journal.relative_to(path).with_suffix("")), problem)
    elif path.suffix == ".jsonl":
        yield from _read_journal(path, path.stem, problem)
    else:
        try:
            row = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            raise UserError(f"{path} is not JSON; {TREE_HINT}") from None
        searched = read_row(row if isinstance(row, dict) and "tree" in row else {"tree": row}, path.stem, str(path))
        if problem in (None, searched.key):
            yield searched


def _read_journal(path: Path, source: str, problem: str | None) -> Iterator[Searched]:
    with Journal(path) as journal:
        for number, row in enumerate(journal, start=1):
            if problem in (None, row["key"]):
                yield read_row(row, source, f"row {number} of {path}")


def read_row(row: dict[str, Any], source: str, where: str) -> Searched:
    """A search from a row with a `tree` and perhaps `gold`, `answer`, `traces` and `error`.

    Without an `answer`, it is chosen by the default rule of the strategy. `where` names the row in messages.
    """
    tree = read_tree(row.get("tree"), where)
    gold = row.get("gold")
    valued = all(node.value is not None for node in tree.terminals)
    rule: Rule = STRATEGIES[tree.strategy].selection if valued and tree.strategy in STRATEGIES else "majority"
    choice, majority = select(tree, rule), select(tree, "majority")
    answer = row.get("answer", choice.answer)
    node = choice.node
    if answer != choice.answer:
        same = [terminal for terminal in tree.terminals if terminal.answer == answer]
        node = max(same, key=lambda terminal: terminal.value or 0.0, default=None)
    error = row.get("error")
    return Searched(
        source=source,
        tree=tree,
        gold=gold if isinstance(gold, str) else None,
        answer=answer if isinstance(answer, str) else None,
        node=node,
        majority=majority.answer,
        shares=choice.shares,
        error=error if isinstance(error, str) else None,
    )


def read_tree(data: Any, where: str) -> Tree:
    """The inverse of `Tree.to_json`, except for token ids and the values of single samples.

    Raises UserError if `data` is not such a tree.
    """
    try:
        tree = Tree(_text(data["problem_id"]), _text(data["question"]), _text(data["strategy"]))
        tree.spent, tree.expansions = _count(data["spent"]), _count(data["expansions"])
        for row in data["nodes"][1:]:
            tree.nodes.append(_read_node(tree, row))
        root = data["nodes"][0]
        tree.root.visits = _count(root["visits"])
        tree.root.order = None if root["order"] is None else _count(root["order"])
        tree.root.pruned = _text(root["pruned"]) if root["pruned"] else None  # type: ignore[assignment]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {visible(str(error))[:80]}"
        raise UserError(f"{where} is not a search tree ({problem}); {TREE_HINT}") from None
    return tree


def _read_node(tree: Tree, row: dict[str, Any]) -> Node:
    parent = tree.nodes[_count(row["parent"])]
    text, merged = _text(row["text"]), _count(row["merged"])
    value = None if row["value"] is None else _number(row["value"])
    if merged > MAX_MERGED:
        raise ValueError(f"{merged} samples in one node")
    node = Node(
        index=len(tree.nodes),
        parent=parent,
        step=Step(text, (), _number(row["logprob"]), value),
        key=_text(row["key"]),
        depth=parent.depth + 1,
        terminal=bool(row["terminal"]),
        answer=None if row["answer"] is None else _text(row["answer"]),
        log_pi=_number(row["log_pi"]),
        value=value,
        g=_number(row["g"]),
        h=_number(row["h"]),
        f=_number(row["f"]),
        visits=_count(row["visits"]),
        order=None if row["order"] is None else _count(row["order"]),
        pruned=_text(row["pruned"]) if row["pruned"] else None,  # type: ignore[arg-type]
    )
    # Trees of earlier versions do not name the other wordings.
    texts = [text, *map(_text, row.get("wordings", ()))]
    sample = Sample(text, node.logprob, value, _count(row["tokens_at"]))
    node.samples = [sample._replace(text=texts[min(i, len(texts) - 1)]) for i in range(max(merged, len(texts)))]
    # Whole solutions are not merged, so a key may come up again; every node keeps a place among the children.
    key = (node.key, node.terminal)
    parent.children[(f"{node.key} {node.index}", node.terminal) if key in parent.children else key] = node
    return node


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is not a count")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a finite number")
    return float(value)
