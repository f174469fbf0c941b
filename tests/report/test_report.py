"""The report: its sections, what is left out, several runs, figures."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from qstar.errors import UserError
from qstar.report.report import report_command
from tests.report.hostile import hostile_row
from tests.report.sample import write_journal, write_run
from tests.report.test_view import Page, check_self_contained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "first", problems=3)


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "first")


def headings(path: Path) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", path.read_text())


def test_a_whole_run_has_every_section(copied: Path) -> None:
    report_command([copied])
    path = copied / "report.html"
    check_self_contained(Page(path))
    assert headings(path) == [
        "Accuracy against tokens",
        "Accuracy against coverage",
        "What decided each problem",
        "Ledger",
        "Is Q calibrated?",
        "Q along right and wrong traces",
        "Examples",
        "Yield of traces",
        "Stages",
    ]
    assert "Not made yet" not in path.read_text()
    pictures = sorted(file.name for file in (copied / "report").iterdir())
    assert pictures == [
        f"{name}.png" for name in ("accuracy", "coverage", "funnel", "outcomes", "q_by_depth", "reliability")
    ]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (copied / "report").iterdir())


def test_the_figures_of_the_comparison_are_on_the_page(copied: Path) -> None:
    report_command([copied])
    text = (copied / "report.html").read_text()
    for cell in json.loads((copied / "eval" / "comparison.json").read_text())["cells"]:
        assert f"{100 * cell['accuracy']:.1f}" in text
        assert f"<td>{cell['budget']}</td>" in text
    assert ">960<" in text  # the funnel's labels are text, not shapes


def test_the_same_runs_give_the_same_page(copied: Path, tmp_path: Path) -> None:
    report_command([copied], tmp_path / "a.html")
    report_command([copied], tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_no_fixed_ink_is_left_in_a_drawing(copied: Path) -> None:
    report_command([copied])
    drawings = re.findall(r"<figure.*?</figure>", (copied / "report.html").read_text(), re.DOTALL)
    assert len(drawings) == 6
    for drawing in drawings:
        assert "style=" not in drawing
        assert not re.search(r'(fill|stroke)="(#000000|black|#0072b2)"', drawing, re.IGNORECASE)


def test_absent_data_becomes_a_line_with_its_command(copied: Path) -> None:
    for name in ("eval", "searches", "search", "train-q", "export"):
        shutil.rmtree(copied / name)
    report_command([copied])
    text = (copied / "report.html").read_text()
    assert headings(copied / "report.html") == ["Stages"]
    for command in (f"qstar eval {copied}", "qstar train-q CONFIG", f"qstar search {copied}", "qstar run"):
        assert f"<code>{command}" in text


def test_runs_on_the_same_problems_share_figures(copied: Path, tmp_path: Path) -> None:
    second = shutil.copytree(copied, tmp_path / "second")
    report_command([copied, second], tmp_path / "both.html")
    assert headings(tmp_path / "both.html").count("Accuracy against tokens") == 1
    text = (tmp_path / "both.html").read_text()
    assert "<bdi>first policy astar</bdi>" in text
    assert "<bdi>second policy astar</bdi>" in text


def test_runs_on_other_problems_never_share_a_figure(copied: Path, tmp_path: Path) -> None:
    second = shutil.copytree(copied, tmp_path / "second")
    path = second / "eval" / "comparison.json"
    data = json.loads(path.read_text())
    data["problems"] = [f"other-{name}" for name in data["problems"]]
    path.write_text(json.dumps(data))
    report_command([copied, second], tmp_path / "both.html")
    assert headings(tmp_path / "both.html").count("Accuracy against tokens (3 problems)") == 2


def test_hostile_text_in_examples_stays_text(copied: Path) -> None:
    (copied / "searches" / "astar-dev-400.jsonl").unlink()
    write_journal(copied / "searches" / "x.jsonl", [hostile_row()])
    report_command([copied])
    page = Page(copied / "report.html")
    check_self_contained(page)
    assert not any(tag == "script" for tag, _ in page.elements)
    assert not any(tag == "img" for tag, _ in page.elements)
    text = (copied / "report.html").read_text()
    assert "&lt;script&gt;window.hacked = 1&lt;/script&gt;" in text
    assert "\u202e" not in text


def test_wrong_paths_are_named(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        report_command([tmp_path / "none"])
    with pytest.raises(UserError, match="given twice"):
        report_command([copied, copied])
    with pytest.raises(UserError, match="at least one"):
        report_command([])
    (copied / "eval" / "comparison.json").write_text("{}")
    with pytest.raises(UserError, match=r"comparison\.json is not a comparison"):
        report_command([copied])
