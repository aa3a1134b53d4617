"""Pictures of the page and the desk for the docs, of a real workspace: ``make screenshots WORKSPACE=nest``.

Answers are those of the served version. For the raising's curves the workspace needs a run; for the desk questions are
laid down, and for a choice between answers some are asked for, which stay in the workspace as any chat does.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from nestling.bench.chat import serving
from nestling.workspace import Workspace
from test_page import chromium, opened, send

PLACE = Path(__file__).parent.parent / "docs" / "images"
WIDE, PHONE = {"width": 1180, "height": 780}, {"width": 390, "height": 780}
LONG = 300_000  # milliseconds: a slow machine beside a training still gets its pictures


def kept(page: Page, name: str) -> None:
    """A picture of what is in sight, then the page is closed."""
    page.screenshot(path=PLACE / f"{name}.png")
    page.context.close()


def answered(page: Page) -> None:
    expect(page.locator("#stop")).to_be_hidden(timeout=LONG)


def chat(browser: Browser, url: str) -> None:
    """An answer with its thumbs, in English by day and in Chinese on a phone by night."""
    page, _ = opened(browser, url, viewport=WIDE)
    send(page, "How can I make my small kitchen tidier?")
    answered(page)
    page.get_by_role("button", name="Good answer").click()
    kept(page, "page-chat")
    page, _ = opened(browser, url, viewport=PHONE, locale="zh-CN", color_scheme="dark", device_scale_factor=2)
    page.locator("#prompt").fill("你是谁？")
    page.keyboard.press("Enter")
    answered(page)
    kept(page, "page-phone")


def several(browser: Browser, url: str) -> None:
    """Two answers to vote on, three to put in order."""
    for count, name in ((2, "page-two"), (3, "page-order")):
        page, _ = opened(browser, url, viewport=WIDE)
        page.locator("#answers").select_option(str(count))
        send(page, "What should I cook for six friends?")
        expect(page.locator(".vote")).to_be_visible(timeout=LONG)
        page.locator(".vote").scroll_into_view_if_needed()
        kept(page, name)


def versions(browser: Browser, url: str) -> None:
    """What the gate said, and the curves of the newest raising."""
    page, _ = opened(browser, url, viewport=WIDE)
    page.locator("#versions").click()
    page.locator("#versions-list summary").first.click()
    kept(page, "page-versions")
    page, _ = opened(browser, url, viewport=WIDE)
    page.locator("#raising summary").click()
    page.wait_for_timeout(1500)
    kept(page, "page-raising")


def desk(browser: Browser, url: str) -> None:
    """Answers to put in order, in Chinese."""
    page, _ = opened(browser, f"{url}/desk", viewport=WIDE, locale="zh-CN")
    expect(page.locator(".side").first).to_be_visible(timeout=LONG)
    kept(page, "desk")


def main(root: str) -> None:
    workspace = Workspace(root)
    filling = [sys.executable, "-m", "nestling", "desk", "fill", "--count", "3", "--answers", "3"]
    subprocess.run([*filling, "--max-new-tokens", "64", "--workspace", root], check=True)
    PLACE.mkdir(exist_ok=True)
    with serving(workspace, workspace.root / "screenshots.log") as (url, _), chromium() as opened_by:
        for picture in (chat, several, versions, desk):
            picture(opened_by, url)


if __name__ == "__main__":
    main(sys.argv[1])
