"""Tables of the cards that go with what is published."""

from __future__ import annotations

from collections.abc import Mapping


def table(head: tuple[str, ...], *columns: Mapping[str, object]) -> str:
    """A Markdown table: a row for each name in the first column's values, one cell for each column."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in columns[0]:
        # One cell each, whatever the text holds.
        cells = (" ".join(str(column[name]).split()).replace("|", "\\|").replace("<", "&lt;") for column in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
