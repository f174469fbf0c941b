"""A search tree made of text that tries to leave its place."""

from __future__ import annotations

from typing import Any

from tests.report.test_data import row_of

HOSTILE = (
    "</script><script>window.hacked = 1</script>\n",
    '<img src=x onerror="window.hacked = 1">\n',
    "<!--<script>\u202e reversed \u2066 isolate {{style}} {{title}}\n",
    "x" * 10_000 + "\n",
    'quote " backslash \\ \\" newline\\n\n',
    "[bold]markup[/bold] $x^2$ \x1b[31mred\n",
)


def hostile_row() -> dict[str, Any]:
    """One branch per hostile text, in the question and the answers too."""
    row = row_of(*((text, f"#### {text}") for text in HOSTILE), gold="</script><b>7</b>")
    row["tree"]["question"] = "".join(HOSTILE)
    row["tree"]["problem_id"] = row["key"] = '"><script>window.hacked = 1</script>'
    row["tree"]["nodes"][1]["wordings"] = ["<script>window.hacked = 1</script>"]
    row["answer"] = row["tree"]["nodes"][2]["answer"]
    return row


def large_row(nodes: int = 10_000) -> dict[str, Any]:
    """A tree of many nodes: eight children each, deep as well as wide."""
    row = row_of(("3 + 4 = 7\n", "#### 7\n"))
    rows = row["tree"]["nodes"]
    for index in range(3, nodes):
        parent = (index - 3) // 8
        while rows[parent]["terminal"]:
            parent += 1
        added = {**rows[1], "parent": parent, "text": f"step {index}: {index} + 1 = {index + 1}\n", "key": str(index)}
        rows.append(added | {"tokens_at": index})
    for index in range(0, nodes, 8):
        rows[index]["order"] = index // 8
    return row
