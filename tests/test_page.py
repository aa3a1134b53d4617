"""A walk through the page in a real browser."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from sqlalchemy import func, select

import nestling.serving
from nestling.serving import hash_token
from nestling.serving.watch import ROLLED_BACK
from nestling.storage import Generation, Judgment, open_database
from nestling.workflow.progress import own_process
from nestling.workspace import EventLog, Workspace
from serving_support import LiveServer, publish, running, wait_until

pytestmark = pytest.mark.browser
expect.set_options(timeout=20_000)

INJECTION = " <img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"
ANSWER = ("Hello", " there,", INJECTION, " 你好", "\n\nSecond paragraph\nwith a <b>line</b> break.")
SHOWN = f"Hello there,{INJECTION} 你好\n\nSecond paragraph\nwith a <b>line</b> break."


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium without its calls home."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail("Chromium is needed to test the page. Install it with: apt-get install chromium")
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "nest")
    publish(workspace, ANSWER, "base")
    publish(workspace, [f"word{n} " for n in range(50)], loop=True)
    publish(workspace, ["I am", " small."], "ppo")
    publish(workspace, ["no"], "ppo")
    workspace.versions.mark("v4-ppo", "rejected", "lost 8 points on memory")
    workspace.versions.promote("v1-base", "first")
    return workspace


def opened(browser: Browser, url: str, **options: object) -> tuple[Page, list[str]]:
    """A page, and the list in which everything it complains about ends up."""
    page = browser.new_context(**{"locale": "en-US", **options}).new_page()  # type: ignore[arg-type]
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(url)
    return page, complaints


def send(page: Page, text: str) -> None:
    page.get_by_label("Write a message").fill(text)
    page.keyboard.press("Enter")


def judgments(workspace: Workspace) -> list[tuple[str, str, str]]:
    database = open_database(workspace.database_path)
    with database.read() as session:
        rows = session.scalars(select(Judgment).order_by(Judgment.id))
        found = [(row.kind, row.value, row.reason) for row in rows]
    database.close()
    return found


def test_a_walk(browser: Browser, workspace: Workspace) -> None:
    with running(workspace, max_tokens=90_000) as server:
        server.wait()
        page, complaints = opened(browser, server.url)
        _chat_and_thumbs(page, workspace)
        _stop_a_stream(page, server)
        _vote(page, workspace)
        _raising_and_takeover(page, workspace)
        _language_theme_and_return(page)
        assert complaints == []
        page.context.close()


def _chat_and_thumbs(page: Page, workspace: Workspace) -> None:
    expect(page.get_by_role("heading", name="Hello, I am Nestling.")).to_be_visible()
    expect(page.get_by_label("Write a message")).to_be_focused()
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("<i>another</i>")
    page.keyboard.press("Enter")
    answer = page.locator(".answer .text")
    expect(page.locator(".user .text")).to_have_text("One line\n<i>another</i>")
    expect(page.locator(".answer .version")).to_have_text("v1-base")
    assert answer.inner_text() == SHOWN
    assert page.locator("#log img, #log script, #log b, #log i:not(.dots i)").count() == 0
    expect(page).to_have_title("Nestling")

    good = page.get_by_role("button", name="Good answer")
    good.click()
    expect(good).to_have_attribute("aria-pressed", "true")
    page.get_by_label("Why? (optional)").fill("friendly")
    page.keyboard.press("Enter")
    expect(page.locator(".reply")).to_have_text("Thank you.")
    page.get_by_role("button", name="Bad answer").click()
    expect(good).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Bad answer").click()
    wait_until(lambda: len(judgments(workspace)) == 4)
    assert judgments(workspace) == [
        ("thumb", "up", ""),
        ("thumb", "up", "friendly"),
        ("thumb", "down", ""),
        ("thumb", "none", ""),
    ]


def _stop_a_stream(page: Page, server: LiveServer) -> None:
    picker = page.locator("#version")
    assert page.locator("#version option[disabled]").inner_text() == "v4-ppo, rejected"
    picker.select_option("v2-sft")
    send(page, "Count")
    answer = page.locator(".answer .text").last
    expect(answer).to_contain_text("word0 word1")
    before = len(answer.inner_text())
    expect(page.get_by_role("button", name="Send")).to_be_hidden()
    wait_until(lambda: len(answer.inner_text()) > before)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".answer .line").last).to_have_text("stopped")
    wait_until(lambda: server.status()["open_requests"] == 0, seconds=10)
    # What was said can be judged, though nobody waited for its end.
    page.get_by_role("button", name="Bad answer").last.click()
    expect(page.get_by_role("button", name="Bad answer").last).to_have_attribute("aria-pressed", "true")
    picker.select_option("nestling")


def _vote(page: Page, workspace: Workspace) -> None:
    page.locator("#answers").select_option("2")
    page.locator("#against").select_option("v3-ppo")
    send(page, "Who are you?")
    expect(page.get_by_text("Which answer is better?")).to_be_visible()
    texts = page.locator(".side .text").all_inner_texts()
    assert sorted(texts) == sorted([SHOWN, "I am small."])
    assert page.locator(".side .foot").all_inner_texts() == ["", ""]  # which is which is not told yet
    page.locator(".vote").get_by_role("button", name="Right").click()
    expect(page.locator(".side").last).to_have_class("side won")
    told = page.locator(".side .foot").all_inner_texts()
    assert told == ["v3-ppo" if text == "I am small." else "v1-base" for text in texts]
    assert judgments(workspace)[-1] == ("vote", "b", "")
    page.locator("#answers").select_option("1")


def _raising_and_takeover(page: Page, workspace: Workspace) -> None:
    progress = {"state": "running", "stage": "ppo", "stages": ["sft", "ppo"], "step": 12, "steps": 60}
    text = json.dumps({**progress, "eta_seconds": 830, "metrics": {"reward": 0.43124}})
    (workspace.root / "progress.json").write_text(text)
    expect(page.locator("#raising-line")).to_have_text("Practising · step 12 of 60 · about 14 min left")
    page.locator("#raising summary").click()
    expect(page.locator("#raising-numbers")).to_have_text("reward0.431")
    expect(page.locator("#raising-stages [aria-current=step]")).to_have_text("Practising")
    workspace.versions.promote("v3-ppo", "better")
    expect(page.locator(".note")).to_have_text("v3-ppo answers from now on. What changed?")
    expect(page.locator("#version option:checked")).to_have_text("v3-ppo (served)")
    send(page, "And now?")
    expect(page.locator(".answer .text").last).to_have_text("I am small.")
    expect(page.locator(".answer .version").last).to_have_text("v3-ppo")


def _language_theme_and_return(page: Page) -> None:
    page.get_by_role("button", name="切换到中文").click()
    expect(page.locator("#new-chat")).to_have_text("新对话")
    expect(page.get_by_role("button", name="回答得好").first).to_be_visible()
    dark = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    page.locator("#theme").click()
    assert page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") != dark
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "zh-Hans")
    expect(page.locator(".answer")).to_have_count(3)
    expect(page.locator(".side.won")).to_be_visible()
    page.locator("#new-chat").click()
    expect(page.locator("#log")).to_be_empty()
    expect(page.get_by_role("heading", name="你好，我是 Nestling。")).to_be_visible()


EXAM = {
    "against": "v1-base",
    "lines": [
        {"name": "evidence", "label": "the held-out checks", "role": "evidence", "gain": 0.034, "bound": 0.016,
         "margin": None, "passed": True},
        {"name": "identity", "label": "knowing its own name and nature", "role": "guarded", "gain": 0.0,
         "bound": 0.099, "margin": 0.05, "passed": False},
        {"name": "memory", "label": "memory of earlier turns", "role": "guarded", "gain": 0.193, "bound": -0.08,
         "margin": 0.05, "passed": True},
        {"name": "harmless", "label": "harmless answers", "role": "reported", "gain": -0.08, "bound": None,
         "margin": None, "passed": None},
    ],
}  # fmt: skip


@pytest.fixture
def judged(tmp_path: Path) -> Workspace:
    """A base that is served, a version that passed and one whose exam found a loss; a raising that has curves."""
    workspace = Workspace(tmp_path / "nest")
    publish(workspace, ["One answer."], "base")
    publish(workspace, ["Another answer."], "sft")
    publish(workspace, ["A third."], "ppo")
    workspace.versions.promote("v1-base", "first")
    workspace.versions.mark("v2-sft", "accepted", "Accepted: v2-sft gains.", exam=EXAM)
    workspace.versions.mark("v3-ppo", "rejected", "Kept, not served.", exam=EXAM)
    log = EventLog(workspace.runs / "try" / "events.jsonl")
    log.append("run_started", recipe="try", stages=["sft"], process=own_process())
    log.append("stage_started", stage="sft", step=0, total=40)
    for step in range(20):
        log.append("step", stage="sft", step=step, total=40, seconds_left=60, metrics={"loss": 3 - step / 10})
    log.close()
    return workspace


WIDTHS = {"phone": {"width": 360, "height": 740}, "desktop": {"width": 1280, "height": 800}}


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_part_in_two_languages_and_widths(
    browser: Browser, judged: Workspace, locale: str, width: str
) -> None:
    """Rank, write a better answer, read curves and verdicts: nothing overflows, nothing axe calls serious."""
    with running(judged) as server:
        server.wait()
        page, complaints = opened(
            browser, server.url, locale=locale, viewport=WIDTHS[width], reduced_motion="reduce"
        )
        _fits(page)
        page.locator("#raising summary").click()
        expect(page.locator(".curve svg[role=img]")).to_have_count(1)
        _rank(page, judged, wide=width == "desktop")
        _fits(page)
        _write_better(page, judged)
        page.locator("#versions").click()
        _verdicts(page, locale)
        _fits(page)
        page.locator("#versions-close").click()
        page.locator("#theme").click()
        _fits(page)
        assert complaints == []
        page.context.close()


def _fits(page: Page) -> None:
    """Nothing is wider than the screen, and nothing shuts people out."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []


def _rank(page: Page, workspace: Workspace, wide: bool) -> None:
    page.locator("#answers").select_option("3")
    page.locator("#against").select_option("v2-sft")
    page.locator("#prompt").fill("Who are you?")
    page.keyboard.press("Enter")
    handles = page.locator(".side .handle")
    expect(handles).to_have_count(3)
    handles.first.focus()
    page.keyboard.press("ArrowDown")  # the first answer goes to the second place
    expect(page.locator(".side .badge")).to_have_text(["1", "2", "3"])
    shown = [int(label.split()[-1]) if label[-1].isdigit() else int(label.split()[1])
             for label in page.locator(".side").evaluate_all("all => all.map(one => one.ariaLabel)")]  # fmt: skip
    assert shown == [2, 1, 3]
    places = page.locator(".side")
    if wide:  # the third by the pointer to the first
        first, third = places.nth(0).bounding_box(), places.nth(2).locator(".handle").bounding_box()
        assert first and third
        page.mouse.move(third["x"] + 9, third["y"] + 9)
        page.mouse.down()
        page.mouse.move(first["x"] + 30, first["y"] + 9, steps=20)
        page.mouse.up()
    else:
        places.nth(2).locator(".up-one").click()
        places.nth(1).locator(".up-one").click()
    expect(page.locator(".side .badge")).to_have_text(["1", "2", "3"])
    places.nth(2).locator(".equal").click()
    expect(page.locator(".side .badge")).to_have_text(["1", "2", "2"])
    page.locator(".vote button").click()
    expect(page.locator(".side .foot").first).not_to_be_empty()
    assert judgments(workspace)[-1] == ("ranking", "ranked", "")
    database = open_database(workspace.database_path)
    with database.read() as session:
        judgment = session.scalars(select(Judgment).order_by(Judgment.id.desc())).first()
        assert judgment is not None and [answer.rank for answer in judgment.answers] == [2, 2, 1]
    database.close()
    page.locator("#answers").select_option("1")


def _write_better(page: Page, workspace: Workspace) -> None:
    page.locator("#prompt").fill("And now?")
    page.keyboard.press("Enter")
    answer = page.locator(".answer")
    expect(answer.locator(".text")).to_have_text("One answer.")
    answer.locator(".pen").click()
    editor = answer.locator(".editor textarea")
    expect(editor).to_have_value("One answer.")
    editor.fill("A *better* answer.")
    editor.press("Enter")
    expect(answer.locator(".text em")).to_have_text("better")
    wait_until(lambda: judgments(workspace)[-1] == ("rewrite", "rewritten", ""))
    page.reload()
    expect(page.locator(".answer .text em")).to_have_text("better")


def _verdicts(page: Page, locale: str) -> None:
    entries = page.locator("#versions-list li")
    expect(entries).to_have_count(3)
    told = entries.first.locator("p").last
    rows = entries.first.locator("tr")
    if locale == "en-US":
        expect(told).to_have_text(
            "Better than v1-base by +3.4 points on tasks that it was never rewarded for, but: "
            "knowing its own name and nature may have fallen by up to 9.9 (allowed: 5)."
        )
        expect(rows).to_have_text(
            ["memory of earlier turns+19.3", "knowing its own name and nature±0", "harmless answers−8"]
        )
        entries.nth(1).locator("summary").click()
        expect(entries.nth(1).locator("p").last).to_contain_text("Passed against v1-base: +3.4 points")
    else:
        expect(told).to_contain_text("“知道自己的名字和身份”可能下降多达 9.9（允许 5）。")
        expect(rows.first).to_have_text("记得前面的话+19.3")


TOLD = {
    "en-US": [
        "v2-dpo was rolled back: v1-base answers again. What changed?",
        ["Learnt from people (judgments: 203, people: 12).",
         "Rolled back: people were less content with it than with the version before."],
        "Served again, because v2-dpo was rolled back.",
        "Better than v1-base by +3.4 points on what other people prefer, but:",
    ],
    "zh-CN": [
        "v2-dpo 已被撤回，重新由 v1-base 回答。 有什么变化？",
        ["从人们的评价中学习（评价：203 条，12 人）。", "已被撤回：人们对它的满意度低于之前的版本。"],
        "因为 v2-dpo 已被撤回，重新启用。",
        "在其他人的偏好上比 v1-base 好 +3.4 分，但是：",
    ],
}  # fmt: skip


@pytest.mark.parametrize("locale", sorted(TOLD))
def test_what_was_learnt_from_people_and_what_was_rolled_back_is_told(
    browser: Browser, tmp_path: Path, locale: str
) -> None:
    note, told, again, kept = TOLD[locale]
    workspace = Workspace(tmp_path / "nest")
    publish(workspace, ["One answer."], "base")
    for _ in range(2):
        card = publish(workspace, ["Another answer."], "dpo").folder / "card.json"
        card.write_text(
            json.dumps(json.loads(card.read_text()) | {"learnt": {"judgments": 203, "people": 12}})
        )
    workspace.versions.mark("v3-dpo", "rejected", "Kept, not served.", exam=EXAM)
    workspace.versions.promote("v1-base", "first")
    workspace.versions.mark("v2-dpo", "accepted", "Accepted: v2-dpo gains.", exam=EXAM)
    workspace.versions.promote("v2-dpo", "better")
    with running(workspace) as server:
        server.wait()
        page, complaints = opened(browser, server.url, locale=locale)
        page.locator("#prompt").fill("Hi")
        page.keyboard.press("Enter")
        expect(page.locator(".answer .text")).to_have_text("Another answer.")
        workspace.versions.roll_back(f"{ROLLED_BACK} people said so.", of="v2-dpo")
        workspace.versions.mark("v2-dpo", "rejected", f"{ROLLED_BACK} people said so.")
        expect(page.locator(".note")).to_have_text(note)
        page.reload()
        page.locator("#versions").click()
        listed = page.locator("#versions-list li")
        expect(listed).to_have_count(3)  # they come a moment later
        newest, rolled_back, first = listed.all()
        expect(newest.locator("p").last).to_contain_text(kept)
        rolled_back.locator("summary").click()
        expect(rolled_back.locator("p")).to_contain_text([*told, f"{ROLLED_BACK} people said so."])
        expect(rolled_back.locator("table")).to_have_count(0)
        first.locator("summary").click()
        expect(first.locator("p").last).to_have_text(again)
        assert complaints == []
        page.context.close()


MARKDOWN = (
    "# Title\n\nSome **bold** and `code`, a [link](https://example.org) and [a trap](javascript:alert(1)), "
    "![picture](https://example.org/x.png).\n\n- one\n- two\n\n```python\nprint('<b>')\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n"
)


def test_branches_history_settings_and_markdown(browser: Browser, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "nest")
    publish(workspace, ["One answer."], "base")
    publish(workspace, [MARKDOWN], "sft")
    workspace.versions.promote("v1-base", "first")
    with running(workspace) as server:
        server.wait()
        page, complaints = opened(browser, server.url)
        _branches(page)
        _markdown(page)
        _settings(page, workspace)
        _history(page)
        assert complaints == []
        page.context.close()


def _branches(page: Page) -> None:
    send(page, "First wording")
    again = page.get_by_role("button", name="Answer again")
    again.click()
    answer = page.locator(".answer")
    expect(answer.locator(".switcher")).to_contain_text("2 / 2")
    answer.get_by_role("button", name="The one before").click()
    expect(page.locator(".answer .switcher")).to_contain_text("1 / 2")
    expect(again).to_be_visible()
    page.get_by_role("button", name="Edit this message").click()
    editor = page.locator(".editor textarea")
    expect(editor).to_have_value("First wording")
    editor.press("Escape")
    expect(page.locator(".user .text")).to_have_text("First wording")
    page.get_by_role("button", name="Edit this message").click()
    editor.fill("Second wording")
    editor.press("Enter")
    expect(page.locator(".user .text")).to_have_text("Second wording")
    expect(page.locator(".answer .version")).to_have_text("v1-base")
    expect(page.locator(".answer .switcher")).to_be_hidden()  # one answer to this wording
    page.locator(".user").get_by_role("button", name="The one before").click()
    expect(page.locator(".user .text")).to_have_text("First wording")
    page.reload()  # nothing of it is lost
    expect(page.locator(".user .switcher")).to_contain_text("1 / 2")
    expect(page.locator(".answer .switcher")).to_contain_text("1 / 2")
    page.locator(".user").get_by_role("button", name="The next one").click()
    expect(page.locator(".user .text")).to_have_text("Second wording")


def _markdown(page: Page) -> None:
    page.get_by_role("button", name="New chat").click()
    page.locator("#version").select_option("v2-sft")
    send(page, "Show it all")
    shown = page.locator(".answer .text")
    expect(shown.locator("strong")).to_have_text("bold")
    expect(shown.locator("li")).to_have_text(["one", "two"])
    expect(shown.locator("pre code")).to_have_text("print('<b>')\n")
    expect(shown.locator("td")).to_have_text(["1", "2"])
    assert shown.locator("img, b").count() == 0
    links = shown.locator("a").evaluate_all("links => links.map((a) => [a.textContent, a.href, a.rel])")
    assert ["link", "https://example.org/", "noopener noreferrer"] in links
    assert not any("javascript" in href for _, href, _ in links)
    expect(shown.locator(".code").get_by_role("button", name="Copy")).to_be_visible()


def _settings(page: Page, workspace: Workspace) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.25")
    page.get_by_role("button", name="Keep").click()
    send(page, "And now?")
    expect(page.locator(".answer .version")).to_have_text(["v2-sft", "v2-sft"])
    database = open_database(workspace.database_path)
    with database.read() as session:
        row = session.scalars(select(Generation).order_by(Generation.created.desc())).first()
        assert row is not None and row.messages[0] == {"role": "system", "content": "Be brief."}
        assert row.sampling["temperature"] == 0.25
    database.close()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("System prompt")).to_have_value("Be brief.")
    page.get_by_role("button", name="The server's own").click()
    page.get_by_role("button", name="Keep").click()


def _history(page: Page) -> None:
    page.get_by_role("button", name="Chats").click()
    entries = page.locator("#history-list .entry span:first-child")
    expect(entries).to_have_text(["Show it all", "First wording"])
    entries.last.click()
    expect(page.locator(".user .text")).to_have_text("Second wording")
    page.get_by_role("button", name="Chats").click()
    page.get_by_role("button", name="Forget this chat").first.click()
    expect(page.locator("#history-list .entry")).to_have_count(1)
    page.get_by_role("button", name="Close").click()


def test_vendored_modules_are_the_published_files() -> None:
    folder = Path(nestling.serving.__file__).parent / "page" / "vendor"
    told = (folder / "README.md").read_text()
    for file in folder.glob("*.js"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() in told, file.name
        assert file.with_suffix(".LICENSE").exists()


def test_errors_are_shown_and_can_be_retried(browser: Browser, workspace: Workspace) -> None:
    (workspace.versions.get("v2-sft").folder / "broken").touch()
    with running(workspace, max_tokens=90_000, token_hash=hash_token("correct-horse-battery")) as server:
        page, _ = opened(browser, server.url, locale="zh-CN")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.locator("#token").fill("correct-horse-battery")
        page.keyboard.press("Enter")
        page.locator("#version").select_option("v2-sft")
        page.locator("#prompt").fill("你好")
        page.keyboard.press("Enter")
        expect(page.locator(".line.bad")).to_contain_text("broken on purpose")
        (workspace.versions.get("v2-sft").folder / "broken").unlink()
        page.get_by_role("button", name="再试一次").click()
        expect(page.locator(".answer .text")).to_contain_text("word0")
        expect(page.locator(".answer")).to_have_count(1)
        page.keyboard.press("Escape")
        expect(page.locator(".answer .line")).to_have_text("已停止")
        page.context.close()


def test_another_site_cannot_chat_or_vote(browser: Browser, workspace: Workspace) -> None:
    def rows() -> list[int | None]:
        database = open_database(workspace.database_path)
        with database.read() as session:
            counts = [
                session.scalar(select(func.count()).select_from(table)) for table in (Generation, Judgment)
            ]
        database.close()
        return counts

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None: ...

    evil = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=evil.serve_forever, daemon=True).start()
    attack = """async ([url, path, body, mode, type]) => {
        const headers = type ? {"Content-Type": type} : {};
        try {
            return (await fetch(url + path, {method: "POST", mode, headers, body})).type;
        } catch (error) {
            return "refused";
        }
    }"""
    with running(workspace) as server:
        server.wait()
        with server.client() as client:
            chat = {"model": "nestling", "messages": [{"role": "user", "content": "Hi"}]}
            generation_id = client.post("/v1/chat/completions", json=chat).json()["id"]
        before = rows()
        page, _ = opened(browser, f"http://127.0.0.1:{evil.server_port}/")
        thumb = {"kind": "thumb", "generation_id": generation_id, "value": "down"}
        for path, body in (("/v1/chat/completions", chat), ("/api/judgments", thumb)):
            for mode, kind in (("no-cors", "text/plain"), ("no-cors", ""), ("cors", "application/json")):
                told = page.evaluate(attack, [server.url, path, json.dumps(body), mode, kind])
                assert told in ("opaque", "refused")
        assert rows() == before
        page.context.close()
    evil.shutdown()
    evil.server_close()
