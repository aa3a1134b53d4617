"""The life of the simulated town: people vote, a version learns, five times over; then a crowd of liars and a dud.

Every step writes what it found into ``town/state.json`` of the workspace; the same call goes on after the last one.
"""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from nestling.bench.household import Household, setting_words
from nestling.bench.satisfaction import (
    Exam,
    apart,
    asked,
    copy_database,
    held_out,
    line_of,
    served_apart,
)
from nestling.bench.town import lost, remembered, townspeople
from nestling.bench.visits import GROUP, Crowd, Door, at_once
from nestling.data import curriculum
from nestling.errors import BenchError
from nestling.feedback.people import Accounts, Person
from nestling.feedback.recorder import Recorder
from nestling.storage import open_database
from nestling.workspace import Card, EventLog, Version, Workspace, atomic

KILLS: dict[int, list[str]] = {
    2: ["server", "trainer"],
    3: ["supervisor", "trainer"],
    4: ["server", "supervisor", "trainer"],
}
"""What is killed in which generation: server and supervisor while people vote, the trainer while it learns."""
_WATCH_SECONDS = 120.0
_BEAT_SECONDS = 20.0
_OTHER_WEIGHTS = "has other weights"  # as `learn --replay` says it


@dataclass(frozen=True)
class Plan:
    """Everything that decides how the town's life goes.

    Attributes:
        settings: of ``nestling learn``; those of ``hardware`` are the server's too.
        each: visits of everybody in a generation, with a vote and a thumb each.
        held_out: requests that satisfaction is measured on.
        liars: made-up people of the crowd that comes at the end, in groups of ten.
        ordeals: what is tried beside the generations themselves.
    """

    base: str
    raters: int = 300
    generations: int = 5
    seed: int = 0
    method: str = "dpo"
    settings: Sequence[str] = ()
    each: int = 2
    held_out: int = 450
    answer_tokens: int = 64
    liars: int = 200
    threads: int = 12
    kills: Mapping[int, Sequence[str]] = field(default_factory=lambda: KILLS)
    ordeals: Sequence[str] = ("without adversaries", "poison", "dud")


@dataclass
class Town:
    """A town in a workspace, which it begins with the version that is served there.

    Raises:
        BenchError: another town has begun in this workspace.
    """

    workspace: Workspace
    plan: Plan
    told: Callable[[str], object]

    def __post_init__(self) -> None:
        self.folder = self.workspace.root / "town"
        self._path = self.folder / "state.json"
        plan = json.loads(json.dumps(asdict(self.plan)))
        self.state: dict[str, Any] = {"plan": plan, "steps": {}, "seconds": {}, "before": {}, "kills": []}
        if self._path.exists():
            self.state = json.loads(self._path.read_text("utf-8"))
        self._beat = self.folder / "beat.json"
        if self._beat.exists():  # what a call that was killed had spent
            self.state["seconds"] |= json.loads(self._beat.read_text("utf-8"))
        if self.state["plan"] != plan:
            raise BenchError(
                "a town with other settings has begun here.", where=str(self._path),
                remedy="Give the same options, or another workspace.",
            )  # fmt: skip
        shared = [setting for setting in self.plan.settings if setting.startswith("hardware.")]
        self.home = Household(self.workspace, self.plan.base, shared, self.folder)
        self.door = Door(lambda: self.home.url, self.plan.answer_tokens)
        self.exam = Exam(held_out(self.plan.held_out, self.plan.seed))
        self.people = townspeople(self.plan.raters, self.plan.seed)

    # The whole ----------------------------------------------------------------------------------------------------

    def live(self) -> dict[str, Any]:
        """Everything that is left to do; returns what was found."""
        if "check" in self.state["steps"]:
            return self.state
        try:
            with self._timed("starting"):
                self.home.start()
            self.crowd = self._crowd()
            self._step("measure-0", self._measure)
            for generation in range(1, self.plan.generations + 1):
                self._generation(generation)
            if "poison" in self.plan.ordeals:
                self._poison()
            if "dud" in self.plan.ordeals:
                self._dud()
            self._step("check", self._check)
        finally:
            self.home.stop()
        return self.state

    def _generation(self, number: int) -> None:
        kills = self.plan.kills.get(number, ())
        self._step(f"votes-{number}", lambda: self._votes(number, kills))
        if number == 1:
            first = self.folder / "judgments-1.sqlite"
            copy_database(self.workspace, first)
        learned = self._step(f"learn-{number}", lambda: self._learn(number, "trainer" in kills))
        self._step(f"measure-{number}", self._measure)
        if "trainer" in kills:
            self._step(f"replay-{number}", lambda: self._replay(learned["version"]))
        if number == 1 and "without adversaries" in self.plan.ordeals:
            self._step("without-adversaries", lambda: self._without_adversaries(learned["version"]))

    def _step(self, name: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a step found, now or in an earlier call."""
        steps, seconds = self.state["steps"], self.state["seconds"]
        if name not in steps:
            with self._timed(name):
                steps[name] = act()
            short = {
                key: value
                for key, value in steps[name].items()
                if not isinstance(value, list) or len(value) < 10
            }
            self.told(f"{name}: {short} ({seconds[name] / 60:.1f} minutes)")
        found: dict[str, Any] = steps[name]
        return found

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Count the time, also of an attempt that is interrupted or killed."""
        began, seconds, over = time.monotonic(), self.state["seconds"], threading.Event()
        before = seconds.get(name, 0.0)
        spent = lambda: round(before + time.monotonic() - began, 1)

        def beat() -> None:
            while not over.wait(_BEAT_SECONDS):
                atomic.write_json(self._beat, {name: spent()})

        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield
        finally:
            over.set()
            heart.join()
            seconds[name] = spent()
            self._save()
            self._beat.unlink(missing_ok=True)

    def _save(self) -> None:
        atomic.write_json(self._path, self.state)

    # People -------------------------------------------------------------------------------------------------------

    def _crowd(self) -> Crowd:
        path = self.folder / "tokens.json"
        if not path.exists():
            accounts = Accounts(self.workspace)
            known, tokens = set(accounts.names()), {}
            for rater in self.people:
                if rater.name in known:  # its token was lost with a call that was killed
                    accounts.remove(rater.name)
                tokens[rater.name] = accounts.add(rater.name)
            atomic.write_private(path, json.dumps(tokens))
        tokens = json.loads(path.read_text("utf-8"))
        visits = self.plan.raters * self.plan.each * (self.plan.generations + 2)
        questions = asked(visits, self.plan.seed)
        return Crowd(self.door, self.people, tokens, self.folder / "diaries", questions, self.plan.threads)

    def _votes(self, generation: int, kills: Sequence[str]) -> dict[str, Any]:
        tasks = self.crowd.visits(f"generation {generation}", self.plan.each)
        drawn = random.Random(f"{self.plan.seed}/kills/{generation}/{len(tasks)}")
        moments = {drawn.randint(1, max(1, len(tasks) - 1)): what for what in kills if what != "trainer"}

        def done(count: int) -> None:
            if what := moments.get(count):
                self._killed(what, f"votes-{generation}", f"after {count} of {len(tasks)} visits")
                self.home.kill_server() if what == "server" else self.home.kill_supervisor()

        at_once(tasks, self.plan.threads, done)
        return {"visits": self.plan.raters * self.plan.each, "version": self.home.wait_for_serving()}

    def _killed(self, what: str, step: str, when: str) -> None:
        self.state["kills"].append({"what": what, "step": step, "when": when})
        self._save()

    # Learning -----------------------------------------------------------------------------------------------------

    def _learn_words(self, *more: str) -> list[str]:
        return ["learn", "--method", self.plan.method, *setting_words([*self.plan.settings, *more])]

    def _learn(self, number: int, kill: bool, name: str = "") -> dict[str, Any]:
        """A learning to its end, killed once on the way if asked for: at a random step of its training."""
        step = name or f"learn-{number}"
        versions = self.workspace.versions
        before = self.state["before"].setdefault(step, versions.names())
        self._save()
        words, log = self._learn_words(), f"{step}.log"
        if kill and not any(k["step"] == step for k in self.state["kills"]):
            share = random.Random(f"{self.plan.seed}/{step}").uniform(0.2, 0.8)
            there = sorted(path.name for path in self.workspace.runs.glob("learn-*"))
            begun = self.state["before"].setdefault(f"{step}, runs", there)
            self._save()
            when = lambda: self._trained(begun, share)
            if self.home.run(words, log, kill_when=lambda: bool(when())) == -9:
                self._killed("trainer", step, f"in step {when()} of its training")
        self.home.must(words, log)
        made = learned_version(self.workspace, before)
        served = self.home.wait_for_serving()
        return {
            "version": made.name, "accepted": made.card.state == "accepted", "verdict": made.card.verdict,
            "served": served, "snapshot": (made.card.model_extra or {})["snapshot"],
            "failed": [line["name"] for line in made.card.metrics["exam"]["lines"] if line["passed"] is False],
        }  # fmt: skip

    def _trained(self, before: Collection[str], share: float) -> str:
        """The step, "3 of 40" say, that a learning which was not there ``before`` has come to, from ``share`` of them
        on."""
        for path in self.workspace.runs.glob("learn-*/events.jsonl"):
            if path.parent.name not in before:
                for event in reversed(EventLog(path).read()[0]):
                    if event["kind"] == "step" and event["step"] >= share * event["total"]:
                        return f"{event['step']} of {event['total']}"
        return ""

    def _measure(self) -> dict[str, Any]:
        return {"version": self.home.wait_for_serving(), "values": self.exam(self.door)}

    def _replay(self, version: str) -> dict[str, Any]:
        log = self.folder / f"replay-{version}.log"
        log.unlink(missing_ok=True)
        code = self.home.run(["learn", "--replay", version], log.name)
        if code and _OTHER_WEIGHTS not in log.read_text("utf-8", errors="replace"):
            raise BenchError(f"the replay of {version} ended with {code}.", where=str(log))
        return {"version": version, "same": code == 0}

    def _without_adversaries(self, learned: str) -> dict[str, Any]:
        """What the first generation would have learnt had the adversaries been silent, beside what it has learnt."""
        first = self.workspace.versions.get(self.state["steps"]["measure-0"]["version"])
        line = line_of(self.workspace, first)
        silent = apart(self.workspace, self.folder / "without-adversaries", line, first.name)
        if not silent.database_path.exists():
            copied = silent.database_path.with_suffix(".partial")
            shutil.copy(self.folder / "judgments-1.sqlite", copied)
            database = open_database(copied)
            for rater in self.people:
                if rater.adversary:
                    Recorder(database).withdraw_person(Person.account(rater.name))
            database.close()
            copied.rename(silent.database_path)
        before = self.state["before"].setdefault("without-adversaries", silent.versions.names())
        self._save()
        nothing = json.dumps(
            dict.fromkeys(curriculum.load().behaviours, 1)
        )  # nobody reads this gate's verdict
        self.home.must(self._learn_words(f"evaluation.sizes={nothing}"), "without-adversaries.log", silent)
        twin = learned_version(silent, before)
        real = apart(
            self.workspace, self.folder / "with-adversaries",
            [*line, self.workspace.versions.get(learned)], first.name,
        )  # fmt: skip
        return {
            "version": learned, "values": self._apart(real, learned), "silent": self._apart(silent, twin.name),
        }  # fmt: skip

    def _apart(self, scratch: Workspace, name: str) -> list[float]:
        log, settings = self.folder / "apart.log", self.plan.settings
        return served_apart(scratch, name, self.exam, self.plan.answer_tokens, log, settings)

    # What must not succeed ------------------------------------------------------------------------------------------

    def _poison(self) -> None:
        """A crowd of made-up people joins the town's; what is learnt from both must not be served."""
        last = self.plan.generations + 1
        self._step("votes-poison", lambda: self._poisoned_votes(last))
        learned = self._step("learn-poison", lambda: self._learn(last, False, "learn-poison"))
        self._step("measure-poison", lambda: self._poisoned(learned["version"]))

    def _poisoned_votes(self, last: int) -> dict[str, Any]:
        tasks = self.crowd.visits(f"generation {last}", self.plan.each)
        liars = self.crowd.poisoners(range(self.plan.liars // GROUP), self.plan.seed)
        mixed = random.Random(self.plan.seed).sample([*tasks, *liars], len(tasks) + len(liars))
        at_once(mixed, self.plan.threads, lambda _: None)
        return {"version": self.home.wait_for_serving(), "votes": self.plan.liars // GROUP * GROUP**2}

    def _poisoned(self, name: str) -> dict[str, Any]:
        """How content people would have been with what the liars made, and are with what is served instead."""
        poisoned = self.workspace.versions.get(name)
        line = line_of(self.workspace, poisoned)
        scratch = apart(self.workspace, self.folder / "poisoned", line, name)
        return {"version": name, "values": self._apart(scratch, name), "served": self._measure()["values"]}

    def _dud(self) -> None:
        """What people liked least comes back under another name, promoted by force: the version of the beginning, or
        what the liars made."""
        versions, steps = self.workspace.versions, self.state["steps"]
        if "before-dud" not in steps:
            self._step("before-dud", lambda: {"version": self.home.wait_for_serving()})
        served = steps["before-dud"]["version"]
        known = [steps[name] for name in ("measure-0", "measure-poison") if name in steps]
        known = [step for step in known if step["version"] != served] or known
        worst = min(known, key=lambda step: sum(step["values"]))
        first = versions.get(worst["version"])
        name = f"dud-of-{first.name}"
        if not versions.exists(name):
            card = Card(
                kind="dud", assistant=first.card.assistant, parents=[served], licence=first.card.licence
            )
            versions.publish(lambda folder: _copy(first, folder), card, name)
        self._step("dud", lambda: self._until_rolled_back(name) | {"values": worst["values"]})

    def _until_rolled_back(self, name: str) -> dict[str, Any]:
        versions = self.workspace.versions
        if versions.get(name).card.state != "rejected":  # it was not rolled back in an earlier call
            self.home.must(["versions", "promote", name, "--force"], "dud.log")
            self.home.wait_for_serving()
        tasks, visits = self.crowd.visits("dud", self.plan.each), 0
        is_back = lambda: versions.get(name).card.state == "rejected"
        while tasks and not is_back():
            now, tasks = tasks[: self.plan.threads], tasks[self.plan.threads :]
            at_once(now, self.plan.threads, lambda _: None)
            visits += len(now)
        deadline = time.monotonic() + _WATCH_SECONDS
        while not is_back() and time.monotonic() < deadline:
            time.sleep(1)
        served = self.home.wait_for_serving()
        verdict = versions.get(name).card.verdict
        return {"version": name, "visits": visits, "served": served, "verdict": verdict}

    def _check(self) -> dict[str, Any]:
        """Every judgment that was ever acknowledged, in the people's own diaries, against the database."""
        entries = remembered(self.folder / "diaries")
        database = open_database(self.workspace.database_path, create=False)
        missing = lost(entries, database)
        database.close()
        return {"acknowledged": len(entries), "lost": [entry["id"] for entry in missing]}


def learned_version(workspace: Workspace, before: Sequence[str]) -> Version:
    """What a learning has made, which answers and says what it learnt from.

    Raises:
        BenchError: it has made nothing.
    """
    new = [version for version in workspace.versions.list() if version.name not in before]
    made = [v for v in new if v.card.kind != "reward_model" and (v.card.model_extra or {}).get("snapshot")]
    if not made:
        raise BenchError("the learning has made no version.", where=str(workspace.root / "runs"))
    return made[-1]


def _copy(version: Version, folder: Any) -> None:
    for path in version.folder.iterdir():
        if path.name != "card.json":
            shutil.copy2(path, folder / path.name)
