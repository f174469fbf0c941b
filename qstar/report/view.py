"""`qstar view`: search trees as a page that replays them, as text, or as a drawing for Graphviz."""

from __future__ import annotations

import io
import math
from bisect import bisect_right
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text
from rich.tree import Tree as TextTree

from qstar.errors import UserError
from qstar.report.data import MARKS, Searched, band, check, read_searches, step_text, visible
from qstar.report.page import asset, write_page
from qstar.runs.files import write_text
from qstar.search.node import Node, Tree

Format = Literal["html", "text", "dot"]

LIMIT = 200
"""Problems per journal that a page shows unless told otherwise."""

SHORT = 100
"""Characters of a step shown in text and drawings."""

Q_COLOURS = ("#b35806", "#e08214", "#fdb863", "#d8daeb", "#b2d2ec", "#6aaed6", "#3182bd")
"""Orange for low V over grey to blue for high V, told apart with any colour vision; dark text can be read on each."""


def view_command(
    path: Path, to: Path | None = None, format: Format = "html", problem: str | None = None, limit: int = LIMIT
) -> None:
    """Show the search trees of a run folder, of one of its journals, or of a tree written by `qstar solve --trace`.

    html: one page with up to `limit` problems of each journal, to `to` (default: view.html in the run, or beside the
    file). text, dot: one tree, to `to` or standard output; `problem` names it if there are several.

    Raises UserError if there is no tree, no such problem, or more than one tree for text and dot.
    """
    if format == "html":
        to = to or (path / "view.html" if path.is_dir() else path.with_suffix(".html"))
        shown, total = write_view(path, to, problem, limit)
        left = f" of {total} (--limit shows more, --problem one)" if shown < total else ""
        print(f"{shown} search tree{'s' * (shown != 1)}{left}: {to}")
        return
    found = read_searches(path, problem)
    searched = next(found, None)
    if searched is None:
        raise _absent(path, problem)
    if (other := next(found, None)) is not None:
        names = f"{searched.key} ({searched.source}), {other.key} ({other.source})"
        raise UserError(f"{path} holds several trees, such as {names}; give one journal and --problem ID")
    if format == "dot":
        drawing = dot(searched)
        if to is None:
            print(drawing, end="")
        else:
            write_text(to, drawing)
        return
    if to is None:
        Console().print(text_tree(searched))
    else:
        text = io.StringIO()
        Console(file=text, width=160).print(text_tree(searched))
        write_text(to, text.getvalue())


def _absent(path: Path, problem: str | None) -> UserError:
    if problem is None:
        return UserError(f"{path} holds no search tree")
    return UserError(f"{path} has no problem {problem!r}; `qstar view {path}` lists the problems it has")


def write_view(path: Path, to: Path, problem: str | None = None, limit: int = LIMIT) -> tuple[int, int]:
    """Write the page; returns how many searches it shows and how many there are.

    Each tree is a data block of its own, which the page reads only when its problem is opened.
    """
    if limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1")
    problems: list[dict[str, Any]] = []
    trees: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for searched in read_searches(path, problem):
        counts[searched.source] = counts.get(searched.source, 0) + 1
        if counts[searched.source] <= limit:
            trees[f"tree-{len(problems)}"] = tree_columns(searched)
            problems.append(summary(searched))
    if not problems:
        raise _absent(path, problem)
    total = sum(counts.values())
    index = {"name": visible(path.resolve().name), "total": total, "problems": problems}
    write_page(
        to,
        f"Search trees of {visible(path.resolve().name)}",
        asset("view.html"),
        styles=("page.css", "view.css"),
        script="view.js",
        data={"index": index, **trees},
    )
    return len(problems), total


def summary(searched: Searched) -> dict[str, Any]:
    """What the list of problems says about a search; every text is made visible."""
    tree = searched.tree
    return {
        "id": visible(searched.key),
        "source": visible(searched.source),
        "question": visible(tree.question),
        "strategy": visible(tree.strategy),
        "status": searched.status,
        "lucky": any(searched.lucky(node) for node in tree.terminals),
        "disagreement": searched.disagreement,
        "answer": _shown(searched.answer),
        "majority": _shown(searched.majority),
        "gold": _shown(searched.gold),
        "shares": [[visible(answer), round(share, 4)] for answer, share in list(searched.shares.items())[:6]],
        "error": _shown(searched.error),
        "spent": tree.spent,
        "expansions": tree.expansions,
        "nodes": len(tree.nodes),
        "solutions": len(tree.terminals),
    }


def _shown(text: str | None) -> str | None:
    return None if text is None else visible(text)


def tree_columns(searched: Searched) -> dict[str, Any]:
    """A tree as one list per column, in the order of the nodes; what few nodes have is an object by node index.

    events: the node of each step of the replay. born: the step of the replay that brought a node up, -1 for the root.
    """
    tree = searched.tree
    nodes = tree.nodes
    checks = [check(node) for node in nodes]
    events, born = timeline(tree)
    return {
        "parent": [-1 if node.parent is None else node.parent.index for node in nodes],
        "text": [visible(step_text(node)) for node in nodes],
        "value": [_short(node.value) for node in nodes],
        "g": [_short(node.g) for node in nodes],
        "h": [_short(node.h) if node.value is not None else None for node in nodes],
        "f": [_short(node.f) for node in nodes],
        "p": [_short(math.exp(min(0.0, node.log_pi))) for node in nodes],
        "visits": [node.visits for node in nodes],
        "merged": [node.merged for node in nodes],
        "order": [node.order for node in nodes],
        "born": born,
        "tokens": [node.tokens_at for node in nodes],
        "check": [state for state, _ in checks],
        "broken": {i: [visible(text) for text in bad] for i, (_, bad) in enumerate(checks) if bad},
        "pruned": {node.index: node.pruned for node in nodes if node.pruned},
        "answer": {node.index: _shown(node.answer) for node in nodes if node.terminal},
        "right": {node.index: searched.right(node) for node in tree.terminals},
        "lucky": [node.index for node in tree.terminals if searched.lucky(node)],
        "wordings": {node.index: words for node in nodes if (words := _wordings(node))},
        "path": [node.index for node in tree.path(searched.node)] if searched.node else [],
        "events": events,
    }


def _short(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


def _wordings(node: Node) -> list[str]:
    """The other wordings merged into a node."""
    return [visible(text.rstrip("\n")) for text in dict.fromkeys(sample.text for sample in node.samples)][1:]


def timeline(tree: Tree) -> tuple[list[int], list[int]]:
    """The steps of a replay: the node of each step, and for each node the step that brought it up (-1: the root).

    A step is a node taken up by the strategy. A node came up in the last step whose first child was sampled before it,
    which holds for repeated expansions too. Where only the root was taken up, as for whole solutions, each moment at
    which something came up is a step.
    """
    taken = sorted((node for node in tree.nodes if node.order is not None), key=lambda node: node.order or 0)
    steps: list[int] = []
    starts: list[int] = []
    for step, node in enumerate(taken):
        if node.children:
            first = min(child.tokens_at for child in node.children.values())
            starts.append(max(first, starts[-1] if starts else 0))
            steps.append(step)
    if len(taken) > 1 and steps:
        later = (steps[max(0, bisect_right(starts, node.tokens_at) - 1)] for node in tree.nodes[1:])
        return [node.index for node in taken], [-1, *later]
    last = {node.tokens_at: node.index for node in tree.nodes[1:]}
    order = {time: step for step, time in enumerate(sorted(last))}
    return [last[time] for time in order], [-1, *(order[node.tokens_at] for node in tree.nodes[1:])]


def text_tree(searched: Searched) -> TextTree:
    """The tree for a terminal: Q, step, checks, f, probability, merged samples; ★ marks the path of the answer."""
    tree = searched.tree
    on_path = set(tree.path(searched.node)) if searched.node else set()
    right = f", right answer {visible(searched.gold)}" if searched.gold is not None else ""
    head = Text(_cut(tree.question, 400), "bold")
    cost = f"{len(tree.nodes)} nodes, {tree.expansions} expansions, {tree.spent} tokens"
    head.append(
        f"\n{visible(tree.strategy)}: answer {visible(searched.answer or 'none')}{right}; {cost}", "not bold dim"
    )
    root = TextTree(head)
    branches = {tree.root: root}
    for node in tree.nodes[1:]:
        assert node.parent is not None
        label = Text()
        if node.value is not None:
            label.append(f"{node.value:.2f} ", f"{Q_COLOURS[band(node.value)]}")
        label.append(f"{'★ ' * (node in on_path)}{_cut(step_text(node))}", "bold" if node in on_path else "")
        state, _ = check(node)
        label.append(f" {MARKS[state]}" if state else "", "red" if state == "false" else "green")
        label.append("".join(f"  {note}" for note in _notes(node)), "dim")
        branches[node] = branches[node.parent].add(label)
    return root


def _notes(node: Node) -> list[str]:
    notes = [f"f={node.f:.2f}"] if node.value is not None else []
    notes += [f"p={math.exp(min(0.0, node.log_pi)):.2f}"]
    notes += [f"×{node.merged}"] if node.merged > 1 else []
    notes += [f"#{node.order}"] if node.order is not None else []
    return notes + ([f"pruned: {node.pruned}"] if node.pruned else [])


def _cut(text: str, length: int = SHORT) -> str:
    text = visible(text.replace("\n", " "))
    return text if len(text) <= length else f"{text[: length - 1]}…"


def dot(searched: Searched) -> str:
    """The tree as a Graphviz digraph: colour by Q, probabilities on the edges, the answer's path in bold."""
    tree = searched.tree
    on_path = set(tree.path(searched.node)) if searched.node else set()
    lines = [
        "digraph search {",
        "  rankdir=LR;",
        '  node [shape=box, style="rounded,filled", fillcolor="#ffffff", fontname="sans-serif", fontsize=11];',
        '  edge [color="#777777", fontname="sans-serif", fontsize=9];',
    ]
    for node in tree.nodes:
        label = _cut(step_text(node) if node.step else tree.question)
        attributes = [f"label={_quoted(label, *_figures(node))}"]
        if node.value is not None:
            attributes.append(f'fillcolor="{Q_COLOURS[band(node.value)]}"')
        if node in on_path:
            attributes.append("penwidth=3")
        if node.pruned:
            attributes.append('style="rounded,filled,dashed"')
        lines.append(f"  n{node.index} [{', '.join(attributes)}];")
        if node.parent is not None:
            weight = ", penwidth=3" if node in on_path else ""
            probability = math.exp(min(0.0, node.log_pi))
            lines.append(f'  n{node.parent.index} -> n{node.index} [label="{probability:.2f}"{weight}];')
    return "\n".join([*lines, "}", ""])


def _figures(node: Node) -> list[str]:
    if node.value is None:
        return []
    state, _ = check(node)
    return [f"Q {node.value:.2f}  f {node.f:.2f} {MARKS[state]}".rstrip()]


def _quoted(*lines: str) -> str:
    """A Graphviz string of lines."""
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'
