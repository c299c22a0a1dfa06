"""The page in a real browser: Debian's chromium, a new profile, the network watched."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")


@dataclass
class Seen:
    """A page, what it asked of the network besides itself, and what it complained of."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-background-networking"],
        )
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Seen]]:
    """Open a file; the page must stay silent and alone."""
    contexts = []

    def visit(path: Path, width: int = 1400, theme: str = "light") -> Seen:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        contexts.append(context)
        seen = Seen(context.new_page())
        address = path.absolute().as_uri()

        def requested(request: Any) -> None:
            if request.url != address:
                seen.requests.append(request.url)

        def said(message: Any) -> None:
            if message.type in ("error", "warning"):
                seen.errors.append(message.text)

        seen.page.on("request", requested)
        seen.page.on("console", said)
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.goto(address)
        return seen

    yield visit
    for context in contexts:
        context.close()
