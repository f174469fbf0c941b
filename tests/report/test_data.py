"""Search trees read back: the same choice and figures, damaged files refused, hidden characters shown."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from qstar.errors import UserError
from qstar.report.data import check, read_row, read_searches, read_tree, visible
from tests.report.sample import Chain, search_rows, write_journal

CHAINS = [Chain(number) for number in range(3)]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return search_rows(CHAINS, budget=250)


def test_a_tree_comes_back_as_it_was_written(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert read_tree(row["tree"], "row").to_json() == row["tree"]


@pytest.mark.parametrize("strategy", ["majority", "mcts"])
def test_whole_solutions_and_repeated_expansions_come_back(strategy: str) -> None:
    (row,) = search_rows(CHAINS[:1], strategy, budget=250)
    tree = read_tree(row["tree"], "row")
    assert tree.to_json() == row["tree"]
    assert sum(len(node.children) for node in tree.nodes) == len(tree.nodes) - 1
    searched = read_row(row, "s", "row")
    assert (searched.answer, searched.status == "solved") == (row["answer"], row["status"] == "correct")


def test_the_chosen_node_is_the_one_the_search_chose(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        searched = read_row({"tree": row["tree"]}, "s", "row")  # as `qstar solve --trace` writes it
        assert searched.answer == row["answer"]
        assert searched.node is not None
        assert searched.node.answer == row["answer"]
        assert searched.status == "unknown"


def row_of(*solutions: tuple[str, ...], gold: str = "7", values: float = 0.5) -> dict[str, Any]:
    """A row whose tree has one branch per solution."""
    nodes: list[dict[str, Any]] = [node(None, "")]
    for steps in solutions:
        parent = 0
        for text in steps:
            nodes.append(node(parent, text, values))
            parent = len(nodes) - 1
    tree = {"problem_id": "p", "question": "q", "strategy": "astar", "spent": 9, "expansions": 1, "nodes": nodes}
    return {"key": "p", "gold": gold, "tree": tree}


def node(parent: int | None, text: str, value: float | None = None) -> dict[str, Any]:
    answer = text.removeprefix("#### ").strip() if text.startswith("####") else None
    place = {"parent": parent, "text": text, "key": text, "logprob": -1.0, "log_pi": -0.5, "value": value}
    figures = {"g": 0.5, "h": 0.7, "f": 1.2, "visits": 0, "merged": 0 if parent is None else 1, "wordings": []}
    end = {"order": None, "tokens_at": 1, "terminal": answer is not None, "answer": answer, "pruned": None}
    return place | figures | end


def asked(*paths: tuple[str, ...]) -> dict[str, Any]:
    """A row of a question that states its numbers."""
    row = row_of(*paths)
    row["tree"]["question"] = "Ann has 3 pears and buys 4. How many?"
    return row


@pytest.mark.parametrize("steps", [("3 + 3 = 7\n",), ("1 + 6 = 7\n",), ("3 + 4 = 7\n", "7 - 3 = 4\n")])
def test_lucky_is_right_for_a_doubtful_reason(steps: tuple[str, ...]) -> None:
    lucky = read_row(asked((*steps, "#### 7\n")), "s", "row")
    assert lucky.lucky(lucky.tree.terminals[0])


def test_lucky_is_not_sound_and_not_wrong() -> None:
    lucky = read_row(asked(("3 + 3 = 7\n", "#### 7\n")), "s", "row")
    sound = read_row(asked(("3 + 4 = 7\n", "#### 7\n")), "s", "row")
    wrong = read_row(asked(("3 + 3 = 8\n", "#### 8\n")), "s", "row")
    assert [s.lucky(s.tree.terminals[0]) for s in (lucky, sound, wrong)] == [True, False, False]
    assert [s.status for s in (lucky, sound, wrong)] == ["solved", "solved", "unsolved"]
    assert [check(step)[0] for step in lucky.tree.nodes] == ["", "false", ""]
    assert check(lucky.tree.nodes[1])[1] == ("3 + 3 = 7",)


def test_disagreement_is_against_the_majority_of_samples() -> None:
    row = row_of(("#### 7\n",), ("a\n", "#### 8\n"), ("b\n", "#### 8\n"))
    row["tree"]["nodes"][1]["value"] = 0.99
    for index in (3, 5):
        row["tree"]["nodes"][index]["value"] = 0.1
    searched = read_row(row, "s", "row")
    assert (searched.answer, searched.majority, searched.disagreement) == ("7", "8", True)
    assert not read_row(row | {"answer": "8"}, "s", "row").disagreement


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("parent", 99),
        ("parent", -1),
        ("parent", None),
        ("text", 3),
        ("value", "high"),
        ("f", float("nan")),
        ("f", float("inf")),
        ("merged", 10**9),
        ("tokens_at", -1),
        ("order", True),
    ],
)
def test_a_damaged_tree_is_refused(place: str, value: Any) -> None:
    row = copy.deepcopy(row_of(("a\n", "#### 7\n")))
    row["tree"]["nodes"][1][place] = value
    with pytest.raises(UserError, match=r"row 4 of x is not a search tree .*qstar search"):
        read_row(row, "s", "row 4 of x")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": []}', "nonsense", "[" * 5000])
def test_a_file_that_is_no_tree_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"tree\.json"):
        list(read_searches(path))


def test_journals_and_trace_files_are_read(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write_journal(tmp_path / "j.jsonl", rows)
    (tmp_path / "t.json").write_text(json.dumps(rows[0]["tree"]))
    assert [s.key for s in read_searches(tmp_path / "j.jsonl")] == [row["key"] for row in rows]
    assert [s.key for s in read_searches(tmp_path / "j.jsonl", rows[1]["key"])] == [rows[1]["key"]]
    assert [s.key for s in read_searches(tmp_path / "t.json")] == [rows[0]["key"]]
    with pytest.raises(UserError, match="holds no search tree"):
        list(read_searches(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        list(read_searches(tmp_path / "none.json"))


def test_characters_that_hide_or_reorder_text_are_written_out() -> None:
    assert visible("a\u202eb\u200bc\x00\x1b[31m\ud800") == "a<U+202E>b<U+200B>c<U+0000><U+001B>[31m<U+D800>"
    assert visible("שלום 3 × 4 = 12\n") == "שלום 3 × 4 = 12\n"
