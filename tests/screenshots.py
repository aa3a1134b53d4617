"""Pictures of the page and the desk for the docs, of a real workspace: ``make screenshots WORKSPACE=nest``.

Answers are those of the served version. For the raising's curves the workspace needs a run; for the desk questions are
laid down, and for a choice between answers some are asked for, which stay in the workspace as any chat does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from nestling.bench.chat import serving
from nestling.workspace import Workspace
from test_page import chromium, opened, send

PLACE = Path(__file__).parent.parent / "docs" / "images"
WIDE, PHONE = {"width": 1180, "height": 780}, {"width": 390, "height": 780}
SETTLED = 1500  # milliseconds until what moves into sight has come to rest
ASKED = ("Suggest a hobby for a rainy weekend.", "How do I get more sleep?", "What makes a good neighbour?")
LONG = 300_000  # milliseconds: a slow machine beside a training still gets its pictures


def kept(page: Page, name: str) -> None:
    """A picture of what is in sight, then the page is closed."""
    page.screenshot(path=PLACE / f"{name}.png")
    page.context.close()


def begun(browser: Browser, url: str, **options: object) -> Page:
    """A page that asks for short answers: the pictures are of the page, not of patience."""
    page, _ = opened(browser, url, **options)
    page.locator("#settings").click()
    page.locator("#set-max_tokens").fill("56")
    page.locator("#settings-form button[type='submit']").click()
    return page


def answered(page: Page) -> None:
    expect(page.locator("#stop")).to_be_hidden(timeout=LONG)


def chat(browser: Browser, url: str) -> None:
    """An answer with its thumbs, in English by day and in Chinese on a phone by night."""
    page = begun(browser, url, viewport=WIDE)
    send(page, "What is the capital of France?")
    answered(page)
    page.get_by_role("button", name="Good answer").click()
    kept(page, "page-chat")
    page = begun(browser, url, viewport=PHONE, locale="zh-CN", color_scheme="dark", device_scale_factor=2)
    page.locator("#prompt").fill("What is the capital of France?")
    page.keyboard.press("Enter")
    answered(page)
    kept(page, "page-phone")


def several(browser: Browser, url: str) -> None:
    """Two answers to vote on, three to put in order."""
    for count, name in ((2, "page-two"), (3, "page-order")):
        page = begun(browser, url, viewport=WIDE)
        page.locator("#answers").select_option(str(count))
        send(page, "What should I cook for six friends?")
        expect(page.locator(".vote")).to_be_visible(timeout=LONG)
        page.locator(".vote").scroll_into_view_if_needed()
        kept(page, name)


def versions(browser: Browser, url: str) -> None:
    """What the gate said, and the curves of the newest raising."""
    page, _ = opened(browser, url, viewport=WIDE)
    page.locator("#versions").click()
    expect(page.locator("#versions-list li").first).to_be_visible()
    page.wait_for_timeout(SETTLED)
    kept(page, "page-versions")
    page, _ = opened(browser, url, viewport=WIDE)
    page.locator("#raising summary").click()
    page.wait_for_timeout(SETTLED)
    kept(page, "page-raising")


def desk(browser: Browser, url: str) -> None:
    """Answers to put in order, in Chinese."""
    page, _ = opened(browser, f"{url}/desk", viewport=WIDE, locale="zh-CN")
    expect(page.locator(".side").first).to_be_visible(timeout=LONG)
    page.wait_for_timeout(SETTLED)
    kept(page, "desk")


def main(root: str) -> None:
    workspace = Workspace(root)
    prompts = workspace.root / "screenshots.jsonl"
    prompts.write_text(
        "".join(
            json.dumps({"prompt": text, "check": {"name": "max_words", "n": 60}}) + "\n" for text in ASKED
        ),
        "utf-8",
    )
    filling = [sys.executable, "-m", "nestling", "desk", "fill", "--prompts", str(prompts), "--answers", "3"]
    filling += ["--temperature", "0.7", "--max-new-tokens", "48", "--workspace", root]
    subprocess.run(filling, check=False)  # laid down by an earlier call, perhaps
    PLACE.mkdir(exist_ok=True)
    with serving(workspace, workspace.root / "screenshots.log") as (url, _), chromium() as opened_by:
        for picture in (chat, several, versions, desk):
            picture(opened_by, url)


if __name__ == "__main__":
    main(sys.argv[1])
