"""The desk in a real browser: order, score, write better, pass by, see what people prefer; two languages and widths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select

from nestling.feedback import Recorder
from nestling.feedback.desk import Desk
from nestling.feedback.people import Person
from nestling.generation.protocol import Completion, Sampling
from nestling.storage import ChatSession, DeskSkip, Judgment, open_database
from nestling.workspace import Workspace
from serving_support import ask, publish, running
from test_page import browser, opened

__all__ = ["browser"]
pytestmark = pytest.mark.browser

TEXTS = (
    "First <b>answer</b>.",
    "Second answer.",
    "Third answer, which is a good deal longer than the other two are.",
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "nest")
    for kind in ("base", "sft"):
        publish(workspace, ["Hello"], kind)
    workspace.versions.promote("v1-base", "first")
    database = open_database(workspace.database_path)
    recorder, desk = Recorder(database), Desk(database)
    for number in range(2):
        prompt = ask(f"Question {number}: what is <i>best</i>?")
        ids = [
            recorder.record_generation(
                ("v1-base", "v2-sft")[at % 2], prompt, Sampling(), Completion(text, "stop", 3, 2)
            )
            for at, text in enumerate(TEXTS)
        ]
        desk.add(f"by hand {number}", prompt, ids, priority=-number)
        for name in ("tom", "lee"):
            recorder.record_comparison(ids[0], ids[1], "b", client=Person.account(name), blinded=True)
    database.close()
    return workspace


@pytest.mark.parametrize(
    ("locale", "width"), [("en-US", 1280), ("en-US", 390), ("zh-CN", 1280), ("zh-CN", 390)]
)
def test_a_sitting_at_the_desk(browser: Browser, workspace: Workspace, locale: str, width: int) -> None:
    with running(workspace) as server:
        server.wait()
        options = {"locale": locale, "viewport": {"width": width, "height": 900}}
        page, complaints = opened(browser, f"{server.url}/desk", **options)
        expect(page.locator("#question .user")).to_have_text("Question 0: what is <i>best</i>?")
        expect(page.locator(".side")).to_have_count(3)
        expect(page.locator("#standings tr")).to_have_count(2)
        expect(page.locator("#standings tr").first).to_contain_text("v2-sft")
        picture(page, f"desk-{locale}-{width}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        _without_serious_violations(page)
        _judge(page)
        expect(page.locator("#question .user")).to_have_text("Question 1: what is <i>best</i>?")
        page.locator("#skip-why").select_option("I cannot tell")
        page.locator("#skip button").click()
        expect(page.locator("#nothing")).to_be_visible()
        page.on("dialog", lambda dialog: dialog.accept())
        page.locator("#forget-me").click()
        expect(page.locator("#forgotten")).to_contain_text("3")
        assert complaints == []
        page.context.close()
    _what_was_recorded(workspace)


def _judge(page: Page) -> None:
    """By keys alone: the last answer comes first; one is scored, one is written better."""
    last = page.locator(".side").nth(2)
    text = last.locator(".text").inner_text()
    last.locator(".handle").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(page.locator(".side").first.locator(".text")).to_have_text(text)
    page.locator(".side").first.locator("input[value='5']").check()
    expect(page.locator(".side").first.locator(".reply")).not_to_have_text("")
    page.locator(".side").nth(1).locator("button.pen").click()
    page.locator(".editor textarea").fill("What should have been said.")
    page.locator(".editor button[type='submit']").click()
    expect(page.locator(".side").nth(1).locator(".text")).to_have_text("What should have been said.")
    page.locator("#controls button.soft").click()


def _what_was_recorded(workspace: Workspace) -> None:
    database = open_database(workspace.database_path)
    with database.read() as session:
        rows = list(
            session.scalars(
                select(Judgment).where(Judgment.session_id.like("browser:%")).order_by(Judgment.id)
            )
        )
        assert [row.kind for row in rows] == ["score", "rewrite", "ranking"]
        assert {row.session_id for row in rows} == {
            s.id for s in session.scalars(select(ChatSession)) if s.kind == "browser"
        }
        assert (
            rows[2].desk_item_id == 1
            and rows[2].blinded
            and sorted(a.rank for a in rows[2].answers) == [1, 2, 3]
        )
        assert rows[0].generation_id == next(a.generation_id for a in rows[2].answers if a.rank == 1)
        assert [skip.item_id for skip in session.scalars(select(DeskSkip))] == [2]
    database.close()


def _without_serious_violations(page: Page) -> None:
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


def picture(page: Page, name: str) -> None:
    """Keep a screenshot where somebody wants to look at it."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
