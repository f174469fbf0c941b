"""Pieces of a report as HTML: figures, tables and example solutions. All text is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from qstar.report.data import MARKS, Searched, band, check, step_text, visible
from qstar.report.figures import Drawing, Key
from qstar.search.node import Node


def figure(drawing: Drawing, caption: str) -> str:
    return (
        f'<figure role="group" aria-label="{escape(caption)}">{_legend(drawing.keys)}{drawing.svg}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def title_of(table: Any) -> str:
    first = table.renderables[0]
    return first.plain if isinstance(first, Text) else str(first)


def table_of(group: Any) -> str:
    """One of the tables of `qstar.evaluate.table` as HTML."""
    assert isinstance(group, Group)
    title, table, *caption = group.renderables
    assert isinstance(title, Text)
    assert isinstance(table, Table)
    columns = [list(column.cells) for column in table.columns]
    body = [[_plain(cell) for cell in row] for row in zip(*columns, strict=True)]
    note = "; ".join(_plain(line) for line in caption)
    return rows_table(title.plain, [_plain(column.header) for column in table.columns], body, note)


def _plain(cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def rows_table(
    title: str, columns: Sequence[str], body: Sequence[Sequence[str]], note: str = "", wide: bool = False
) -> str:
    """A table whose first column names the row; the others are figures, or text if `wide`."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    rows = "".join(
        f'<tr><th scope="row"><bdi>{escape(row[0])}</bdi></th>'
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in body
    )
    foot = f'<p class="soft small">{escape(note)}</p>' if note else ""
    name = escape(title)
    return (
        f'<div class="block"><h3>{name}</h3><div class="scroll" tabindex="0" role="region" aria-label="{name}">'
        f"<table{' class=wide' * wide}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{foot}</div>"
    )


def _legend(keys: Sequence[Key]) -> str:
    if not keys:
        return ""
    dash, items = ' stroke-dasharray="5 3"', []
    for key in keys:
        colour = escape(key.colour)
        width = 2 if key.marker else 5
        mark = f'<text x="14" y="10" font-size="12" text-anchor="middle" fill="{colour}">{key.marker}</text>'
        items.append(
            '<li><svg viewBox="0 0 28 12" width="28" height="12" aria-hidden="true">'
            f'<path d="M0 6H28" stroke="{colour}" stroke-width="{width}"{dash * key.dashed}/>{mark}</svg>'
            f"<bdi>{escape(key.label)}</bdi></li>"
        )
    return f'<ul class="keys">{"".join(items)}</ul>'


def example(searched: Searched, run: str) -> str:
    tree = searched.tree
    mark, tone = {"solved": ("✓", "good"), "unsolved": ("✗", "bad")}.get(searched.status, ("", "soft"))
    right = f", right: {searched.gold}" if searched.status == "unsolved" else ""
    tags = ["lucky"] * bool(searched.node and searched.lucky(searched.node)) + ["split vote"] * searched.disagreement
    steps = "".join(_example_step(node) for node in tree.path(searched.node)) if searched.node else ""
    cost = f"{tree.strategy}, {tree.spent} tokens, {len(tree.nodes)} nodes"
    return (
        f'<article><p class="text">{short_html(tree.question, 1200)}</p>'
        f"<ol>{steps or '<li>no complete solution</li>'}</ol>"
        f'<p><b class="{tone}">{mark} {short_html(searched.answer or "no answer", 80)}</b>{short_html(right, 80)} '
        f"{''.join(f'<span class=tag>{tag}</span> ' for tag in tags)}</p>"
        f'<p class="soft small">{escape(f"{run}: " * bool(run))}{short_html(cost, 100)}</p></article>'
    )


def _example_step(node: Node) -> str:
    state, _ = check(node)
    tone = {"holds": "good", "false": "bad"}.get(state, "soft")
    value = "" if node.value is None else f"{_qbar(node.value)} {node.value:.2f}"
    return (
        f'<li><span class="num">{value}</span><span class="text">{short_html(step_text(node), 600)}</span> '
        f'<span class="{tone}">{MARKS[state]}</span></li>'
    )


def _qbar(value: float) -> str:
    width = round(46 * min(1.0, max(0.0, value)), 1)
    return (
        f'<span class="qbar"><svg width="46" height="10" aria-hidden="true"><rect class="q{band(value)}" '
        f'width="{width}" height="10"/></svg></span>'
    )


def short_html(text: str, length: int) -> str:
    """Escaped text of at most `length` characters."""
    text = visible(text)
    return escape(text if len(text) <= length else f"{text[: length - 1]}…")
