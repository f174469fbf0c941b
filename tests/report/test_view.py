"""The viewer's page, text and drawing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qstar.errors import UserError
from qstar.report.data import read_row, read_tree
from qstar.report.page import script_json
from qstar.report.view import dot, summary, text_tree, timeline, tree_columns, view_command, write_view
from tests.report.hostile import HOSTILE, hostile_row, large_row
from tests.report.sample import Chain, search_rows, write_journal
from tests.report.test_data import row_of


class Page(HTMLParser):
    """What a browser makes of a page: elements, and the text of scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style") and data.strip():
            self.texts.append((*self.elements[-1], data))

    def block(self, name: str) -> Any:
        """The JSON of a data block."""
        (text,) = (text for _, attributes, text in self.texts if attributes.get("id") == name)
        return json.loads(text)

    @property
    def policy(self) -> dict[str, list[str]]:
        """The content security policy by directive."""
        (content,) = (a["content"] for tag, a in self.elements if a.get("http-equiv") == "Content-Security-Policy")
        parts = (directive.split() for directive in (content or "").split(";"))
        return {name: sources for name, *sources in parts}


def check_self_contained(page: Page) -> None:
    """The policy allows the page's own style and script by hash and nothing else; nothing is referred to."""
    assert page.policy["default-src"] == ["'none'"]
    assert page.policy["base-uri"] == page.policy["form-action"] == ["'none'"]
    for kind, directive in (("style", "style-src"), ("script", "script-src")):
        inline = [text for tag, a, text in page.texts if tag == kind and a.get("type") != "application/json"]
        hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in inline]
        assert page.policy[directive] == (hashes or ["'none'"])
        assert len(inline) <= 1
    for _, attributes in page.elements:
        assert not {"src", "style", "onclick", "onerror", "onload"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return search_rows([Chain(number) for number in range(3)], budget=250)


def test_the_page_holds_every_tree_and_loads_nothing(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write_journal(tmp_path / "j.jsonl", rows)
    assert write_view(tmp_path / "j.jsonl", tmp_path / "out" / "view.html") == (3, 3)
    page = Page(tmp_path / "out" / "view.html")
    check_self_contained(page)
    index = page.block("index")
    assert [problem["id"] for problem in index["problems"]] == [row["key"] for row in rows]
    for number, row in enumerate(rows):
        searched = read_row(row, "j", "row")
        assert page.block(f"tree-{number}") == json.loads(json.dumps(tree_columns(searched)))
        assert index["problems"][number] == summary(searched)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    write_journal(tmp_path / "j.jsonl", [hostile_row()])
    write_view(tmp_path / "j.jsonl", tmp_path / "view.html")
    page = Page(tmp_path / "view.html")
    check_self_contained(page)
    assert [a.get("type") for tag, a in page.elements if tag == "script"] == ["application/json"] * 2 + [None]
    texts = page.block("tree-0")["text"]
    for text in HOSTILE[:2] + HOSTILE[3:5]:
        assert text.rstrip("\n") in texts
    assert any("<U+202E> reversed <U+2066>" in text for text in texts)
    assert page.block("index")["problems"][0]["gold"] == "</script><b>7</b>"


@pytest.mark.parametrize("text", ["</script>", "<!--", "\u2028", "\x00", '"\\', "</SCRIPT", "]]>"])
def test_json_in_a_script_round_trips_without_markup(text: str) -> None:
    written = script_json({text: [text]})
    assert "<" not in written
    assert written.isascii()
    assert json.loads(written) == {text: [text]}


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json([float("nan")])


def test_ten_thousand_nodes_make_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    write_journal(tmp_path / "j.jsonl", [large_row()])
    write_view(tmp_path / "j.jsonl", tmp_path / "view.html")
    assert (tmp_path / "view.html").stat().st_size < 3_000_000
    assert len(Page(tmp_path / "view.html").block("tree-0")["parent"]) == 10_000


def test_a_limit_leaves_problems_out_and_says_so(
    rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_journal(tmp_path / "j.jsonl", rows)
    view_command(tmp_path / "j.jsonl", limit=2)
    assert "2 search trees of 3" in capsys.readouterr().out
    assert Page(tmp_path / "j.html").block("index")["total"] == 3
    with pytest.raises(UserError, match="limit is 0"):
        view_command(tmp_path / "j.jsonl", limit=0)
    with pytest.raises(UserError, match="no problem 'x'"):
        view_command(tmp_path / "j.jsonl", problem="x")


@pytest.mark.parametrize("strategy", ["astar", "mcts", "beam", "majority", "greedy"])
def test_the_replay_brings_every_node_up_after_its_parent(strategy: str) -> None:
    (row,) = search_rows([Chain(1)], strategy, budget=250)
    tree = read_tree(row["tree"], "row")
    events, born = timeline(tree)
    assert born[0] == -1
    assert all(0 <= step < len(events) for step in born[1:])
    for node in tree.nodes[1:]:
        assert node.parent is not None
        assert born[node.index] >= born[node.parent.index]
        if len(events) > 1 and node.order is not None:
            assert born[node.index] < events.index(node.index)
    if strategy not in ("majority", "greedy"):
        assert events == [n.index for n in sorted(tree.nodes, key=lambda n: n.order or 0) if n.order is not None]
        first = [node.index for node in tree.root.children.values() if born[node.index] == 0]
        assert first


def test_whole_solutions_are_replayed_one_by_one() -> None:
    (row,) = search_rows([Chain(1)], "majority", budget=250)
    tree = read_tree(row["tree"], "row")
    events, born = timeline(tree)
    assert len(events) == len({node.tokens_at for node in tree.nodes[1:]}) > 1
    for node in tree.terminals:
        assert {born[step.index] for step in tree.path(node)} == {born[node.index]}


def test_text_shows_steps_values_and_the_path_of_the_answer() -> None:
    row = row_of(("3 + 3 = 7\n", "#### 7\n"), ("3 * 4 = 12\n", "#### 12\n"))
    row["tree"]["nodes"][2]["value"] = 0.9
    row["tree"]["nodes"][1].update(merged=3, order=1)
    row["tree"]["nodes"][3]["pruned"] = "rank"
    console = Console(width=120, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(text_tree(read_row(row, "s", "row")))
    lines = captured.get().splitlines()
    assert lines[:2] == ["q", "astar: answer 7, right answer 7; 5 nodes, 1 expansions, 9 tokens"]
    assert "0.50 ★ 3 + 3 = 7 ✗  f=1.20  p=0.61  ×3  #1" in lines[2]
    assert "0.90 ★ #### 7" in lines[3]
    assert "0.50 3 * 4 = 12 ✓  f=1.20  p=0.61  pruned: rank" in lines[4]


def test_text_and_drawing_keep_hostile_text_in_place(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(hostile_row()))
    view_command(tmp_path / "t.json", tmp_path / "t.txt", "text")
    text = (tmp_path / "t.txt").read_text()
    assert "[bold]markup[/bold]" in text
    assert "<U+001B>[31mred" in text
    assert "\x1b" not in text
    view_command(tmp_path / "t.json", tmp_path / "t.dot", "dot")
    drawing = (tmp_path / "t.dot").read_text()
    # Outside of strings, whose escapes are \\ and \", only the grammar's own characters are left.
    outside = re.sub(r'"(?:[^"\\]|\\.)*"', "S", drawing)
    assert re.fullmatch(r"[\w\s\[\]=,;{}>-]*", outside)
    assert max(map(len, text.splitlines())) <= 160


def test_a_drawing_has_a_node_and_an_edge_for_each_step(rows: list[dict[str, Any]]) -> None:
    searched = read_row(rows[0], "s", "row")
    drawing = dot(searched)
    assert drawing.startswith("digraph search {")
    assert drawing.endswith("}\n")
    assert len(re.findall(r"^  n\d+ \[", drawing, re.MULTILINE)) == len(searched.tree.nodes)
    assert drawing.count(" -> ") == len(searched.tree.nodes) - 1
    assert drawing.count("penwidth=3]") >= len(searched.tree.path(searched.node))  # type: ignore[arg-type]


def test_text_of_several_trees_asks_for_one(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write_journal(tmp_path / "j.jsonl", rows)
    with pytest.raises(UserError, match=r"several trees.*--problem"):
        view_command(tmp_path / "j.jsonl", format="text")
    view_command(tmp_path / "j.jsonl", tmp_path / "one.txt", "text", problem=rows[2]["key"])
    assert f"answer {rows[2]['answer']}" in (tmp_path / "one.txt").read_text()
