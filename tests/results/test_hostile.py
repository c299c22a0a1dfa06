"""Texts of strangers run nothing, fetch nothing and break no layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import TEXTS
from run_builders import fill

from robench.results.report.write import write
from robench.results.store import RunStore

Visit = Callable[..., Any]


def everywhere(folder: Path, text: str) -> Path:
    """The page of a run that has a text in every place that others fill."""
    ids = [f"{text}{number}" for number in range(4)]
    for defense in ("none", f"d{text}"):
        fill(folder, "direct", "RRRR", defense, model=text, ids=ids, category=text)
        fill(
            folder, f"a{text}", "HHHR", defense, model=text, ids=ids, category=text, reply=text,
            prompt=text, early=[(2, "R")], defense_note=text,
        )  # fmt: skip
    fill(folder, "hole", "", "none", model=text, ids=ids, reason=text or "why")
    RunStore(folder).save_behaviors([{"id": b, "text": text} for b in ids])
    return write([folder], replies=True)


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_a_text_is_only_shown(visit: Visit, tmp_path: Path, number: int) -> None:
    seen = visit(everywhere(tmp_path, TEXTS[number]), width=1000)
    page = seen.page
    for place in range(1, page.locator(".matrix button").count()):
        page.locator(".matrix button").nth(place).click()
        page.wait_for_selector("#detail[open]")
        page.locator("#detail-list summary").first.click()
        page.locator("#detail-list .said-text").nth(1).wait_for()
        page.keyboard.press("Escape")
    assert page.evaluate("window.hacked") is None
    assert (seen.requests, seen.errors) == ([], [])
    assert page.locator("iframe, base, link, form[action]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000
    assert page.evaluate("document.querySelectorAll('body > main > section').length") == 1
    assert page.locator("footer").is_visible()
    assert "49" not in page.locator(".matrix").inner_text()
