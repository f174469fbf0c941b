"""The pages in a headless Chromium: filter, open, replay, keys, hostile text, no message on the console, no request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qstar.report.report import report_command
from qstar.report.view import write_view
from tests.report.hostile import HOSTILE, hostile_row, large_row
from tests.report.sample import Chain, search_rows, write_journal, write_run
from tests.report.test_data import row_of

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install qstar[browser]")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, such as Debian's package"),
    pytest.mark.timeout(600),
]

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def load(browser: Any) -> Iterator[Any]:
    """Opens a file; at the end there must have been no message, error or request other than the file itself."""
    seen: list[str] = []
    contexts: list[Any] = []

    def open_page(path: Path, width: int = 1400, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("request", lambda request: seen.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert seen == []


def view(folder: Path, rows: list[dict[str, Any]]) -> Path:
    write_journal(folder / "j.jsonl", rows)
    write_view(folder / "j.jsonl", folder / "view.html")
    return folder / "view.html"


def named(row: dict[str, Any], key: str) -> dict[str, Any]:
    row["key"] = row["tree"]["problem_id"] = key
    row["tree"]["question"] = f"question {key}"
    return row


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """A solved, a wrong, a lucky and a split problem."""
    split = named(row_of(("#### 7\n",), ("a\n", "#### 8\n"), ("b\n", "#### 8\n")), "split")
    split["answer"] = "7"
    rows = [
        named(row_of(("7 + 7 - 7 = 7\n", "#### 7\n")), "solved"),
        named(row_of(("3 + 4 = 7\n", "#### 8\n")), "wrong"),
        named(row_of(("3 + 3 = 7\n", "#### 7\n")), "lucky"),
        split,
    ]
    return view(tmp_path, rows)


def questions(page: Any) -> list[str]:
    return [text.removeprefix("question ") for text in page.locator("#problems .item .q").all_inner_texts()]


def test_filters_and_find(load: Any, kinds: Path) -> None:
    page = load(kinds)
    assert questions(page) == ["solved", "wrong", "lucky", "split"]
    for name, shown in (
        ("solved", ["solved", "lucky", "split"]),
        ("unsolved", ["wrong"]),
        ("lucky", ["lucky"]),
        ("split", ["split"]),
        ("all", ["solved", "wrong", "lucky", "split"]),
    ):
        page.click(f"[data-filter={name}]")
        assert questions(page) == shown
        assert page.get_attribute(f"[data-filter={name}]", "aria-pressed") == "true"
    page.fill("#find", "LUCK")
    assert questions(page) == ["lucky"]
    assert page.inner_text("#question") == "question lucky"
    page.fill("#find", "nothing like it")
    assert page.inner_text("#problems") == "No problem matches."


def test_open_close_and_keys(load: Any, tmp_path: Path) -> None:
    page = load(view(tmp_path, search_rows([Chain(2), Chain(3)])))
    count = page.locator("#rows .row").count
    whole = count()
    assert page.locator("#rows .row.on .star").count() >= 2
    page.focus("#scroller")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    assert count() == 1
    page.keyboard.press("ArrowRight")
    opened = count()
    assert 1 < opened <= whole
    page.keyboard.press("ArrowRight")
    assert page.locator("#rows .row.picked").get_attribute("aria-level") == "2"
    page.keyboard.press("e")
    assert count() == whole
    page.keyboard.press("c")
    assert count() < whole
    page.keyboard.press("a")
    assert "= " in page.inner_text("#rows .row.picked")
    assert page.get_attribute("#scroller", "aria-activedescendant") == page.get_attribute("#rows .row.picked", "id")
    before = page.inner_text("#question")
    page.keyboard.press("n")
    assert page.inner_text("#question") != before
    page.keyboard.press("p")
    assert page.inner_text("#question") == before
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "find"


def test_replay_follows_the_order_of_expansion(load: Any, tmp_path: Path) -> None:
    (row,) = search_rows([Chain(3)])
    page = load(view(tmp_path, [row]))
    nodes = row["tree"]["nodes"]
    order = sorted(
        (index for index, node in enumerate(nodes) if node["order"] is not None), key=lambda i: nodes[i]["order"]
    )
    page.click("[data-move=first]")
    assert page.locator("#rows .row").count() == 1
    shown = [1]
    for step, index in enumerate(order[:6], start=1):
        page.click("[data-move=forward]")
        assert page.inner_text("#step") == f"{step} / {len(order)}"
        assert page.get_attribute("#rows .row.now", "data-node") == str(index)
        page.keyboard.press("e")
        shown.append(page.locator("#rows .row").count())
    assert shown == sorted(shown)
    assert shown[-1] < len(nodes)
    page.evaluate("scrub.value = scrub.max; scrub.dispatchEvent(new Event('input'))")
    page.click("#expand")
    assert page.get_attribute("#scroller", "aria-rowcount") == str(len(nodes) + 1)
    page.click("#play")
    sync_api.expect(page.locator("#step")).to_have_text(f"{len(order)} / {len(order)}", timeout=120_000)
    sync_api.expect(page.locator("#play")).to_have_attribute("aria-label", "Play")


@pytest.mark.parametrize("width", [400, 1400])
def test_hostile_text_is_shown_as_text(load: Any, tmp_path: Path, width: int) -> None:
    page = load(view(tmp_path, [hostile_row()]), width)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, #rows script, #detail script").count() == 0
    shown = page.locator("#rows .words").all_inner_texts()
    assert HOSTILE[0].strip() in shown
    assert any("<U+202E>" in text for text in shown)
    page.locator("#rows .row", has_text="xxxx").first.click()
    assert page.locator("#detail .long").first.inner_text() == "x" * 10_000
    page.locator("#rows .row", has_text="</script>").first.click()
    assert "<script>window.hacked = 1</script>" in page.inner_text("#detail")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_ten_thousand_nodes_stay_usable(load: Any, tmp_path: Path) -> None:
    page = load(view(tmp_path, [large_row()]), 400)
    page.click("#expand")
    assert page.get_attribute("#scroller", "aria-rowcount") == "10001"
    assert page.locator("#rows .row").count() < 80
    page.focus("#scroller")
    page.keyboard.press("End")
    assert page.locator("#rows .row.picked").is_visible()
    assert page.locator("#rows .row").count() < 80


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_shows_the_list_on_demand(load: Any, kinds: Path, scheme: str) -> None:
    page = load(kinds, 400, scheme)
    assert not page.locator("#side").is_visible()
    page.click("#open")
    page.locator("#problems .item").nth(2).click()
    assert not page.locator("#side").is_visible()
    assert page.inner_text("#question") == "question lucky"
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 24)"
    assert dark == (scheme == "dark")


@pytest.mark.parametrize("width", [400, 1400])
def test_the_report_fits_its_window(load: Any, tmp_path: Path, width: int) -> None:
    run = write_run(tmp_path / "run", problems=3)
    report_command([run])
    page = load(run / "report.html", width)
    assert page.locator("figure > svg").count() >= 6
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = page.locator("figure > svg").first.bounding_box()
    assert drawn["width"] > 250
    assert drawn["height"] > 150
