"""What a reader does with the page: sort, filter, unfold, switch to dark, print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_builders import fill

from robench.results.report.write import write

Visit = Callable[..., Any]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for defense, letters in (("none", "HHHR"), ("cb", "RDR?"), ("another", "HRRR")):
        fill(folder, "direct", "RRRR", defense, model="organism")
        fill(folder, "gcg", letters, defense, model="organism", early=[(2, "R")], reply="Sure.")
        fill(folder, "benign", "YYYR", defense, model="organism")
    return write([folder])


def column(seen: Any, number: int) -> list[str]:
    cells = seen.page.locator(f"table.board tbody tr > :nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_the_page_is_silent_and_asks_for_nothing(visit: Visit, page: Path) -> None:
    seen = visit(page)
    seen.page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    assert (seen.requests, seen.errors) == ([], [])


def test_a_head_sorts_its_column_both_ways(visit: Visit, page: Path) -> None:
    seen = visit(page)
    head = seen.page.locator("table.board thead th", has_text="worst case").first
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    values = [int(text.removeprefix("≤ ").split()[0]) for text in column(seen, 4)]
    assert values == sorted(values, reverse=True)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [int(t.removeprefix("≤ ").split()[0]) for t in column(seen, 4)] == sorted(values)
    seen.page.locator("table.board thead th", has_text="defense").get_by_role("button").click()
    assert column(seen, 3) == ["none", "cb", "another"]


def opened(seen: Any) -> None:
    cell = seen.page.locator(".matrix tbody tr", has_text="none").locator("button").nth(1)
    cell.focus()
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector("#detail[open]")


def test_a_cell_opens_by_keyboard_and_is_filtered(visit: Visit, page: Path) -> None:
    seen = visit(page)
    opened(seen)
    assert seen.page.locator("#detail-title").inner_text() == "gcg on none"
    assert seen.page.locator("#detail-list > details").count() == 4
    seen.page.select_option("#detail-outcome", "harmful")
    assert seen.page.locator("#detail-count").inner_text() == "3 of 4 behaviors"
    seen.page.fill("#detail-filter", "B1")
    assert seen.page.locator("#detail-list summary").all_inner_texts() == ["harmfulb1 · fraud"]
    seen.page.locator("#detail-list summary").click()
    seen.page.locator(".attempt .said-text").nth(1).wait_for()
    shown = seen.page.locator(".attempt .said-text").all_inner_texts()
    assert shown[:2] == ["a prompt", "Sure."]
    seen.page.keyboard.press("Escape")
    assert not seen.page.locator("#detail").is_visible()
    assert (seen.requests, seen.errors) == ([], [])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_button_turns_the_theme(visit: Visit, page: Path, theme: str) -> None:
    seen = visit(page, theme=theme)
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(20, 20, 22)"
    first, second = (light, dark) if theme == "light" else (dark, light)
    assert seen.page.evaluate(paper) == first
    seen.page.click("#theme")
    assert seen.page.evaluate(paper) == second


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_screen(visit: Visit, page: Path, width: int) -> None:
    assert visit(page, width).page.evaluate("document.documentElement.scrollWidth") <= width


def test_on_paper_everything_is_open(visit: Visit, page: Path) -> None:
    seen = visit(page, theme="dark")
    seen.page.emulate_media(media="print")
    seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert seen.page.locator("main details:not([open])").count() == 0
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    assert not seen.page.locator("#theme").is_visible()
    assert seen.page.pdf()[:4] == b"%PDF"
    seen.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert seen.page.locator("main details[open]").count() == 0


def test_every_control_has_a_name_and_every_picture_a_text(visit: Visit, page: Path) -> None:
    seen = visit(page)
    nameless = "[...document.querySelectorAll('button, input, select')].filter(" \
        "e => !(e.textContent || e.labels?.length)).length"  # fmt: skip
    assert seen.page.evaluate(nameless) == 0
    assert seen.page.locator("figure:not([aria-label])").count() == 0
    assert seen.page.locator("html[lang]").count() == 1
    assert seen.page.locator("h1").count() == 1
