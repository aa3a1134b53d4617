"""What training looks like when it is well and when it is sick: the same stages run both ways, side by side.

Every scene is a command of its own in a workspace of its own; what was run stays there, and the same call goes on.
"""

from __future__ import annotations

import json
import random
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from nestling.bench.household import Household
from nestling.bench.report import machine
from nestling.bench.satisfaction import apart, line_of
from nestling.compute.device import Hardware
from nestling.data import curriculum
from nestling.errors import BenchError
from nestling.evaluation.plots import as_svg, logged_curves, plain
from nestling.workspace import EventLog, Version, Workspace, atomic

_PROMPTS, _FEW = 120, 24
_CHATS = {"everyday": 60, "refusal": 30, "harmless": 30, "identity": 30, "format": 50}
_RANKED = {"refusal": 30, "harmless": 30, "everyday": 20, "format": 40}
_SHOWN = 3  # answers of a run that are shown

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Scene:
    """A run to look at, as ``gallery.yaml`` has it; ``do`` is empty where nothing is amiss."""

    verb: str
    title: str
    words: str
    see: str
    name: str = ""
    do: str = ""
    curves: Sequence[str] = ()

    @property
    def key(self) -> str:
        """Its folder's name."""
        return self.name or f"{self.verb}-healthy"


@dataclass(frozen=True)
class Played:
    """What became of a scene: the command, its exit code and last words, the curves, answers of the last transcript."""

    command: str
    code: int
    last_words: str
    minutes: float
    curves: dict[str, Curve]
    answers: list[tuple[str, str]] = field(default_factory=list)


def scenes() -> tuple[dict[str, str], list[Scene], list[Scene]]:
    """Options that a verb's runs share, the healthy scenes, the sick ones."""
    content = yaml.safe_load(resources.files(__package__).joinpath("gallery.yaml").read_text("utf-8"))
    healthy, sick = ([Scene(**scene) for scene in content[kind]] for kind in ("healthy", "sick"))
    return content["shared"], healthy, sick


@dataclass
class Gallery:
    """The scenes of a start version, in ``gallery/`` of its workspace."""

    workspace: Workspace
    start: Version
    told: Callable[[str], object]

    def __post_init__(self) -> None:
        self.folder = self.workspace.root / "gallery"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shared, self.healthy, self.sick = scenes()

    def play_all(self) -> dict[str, Played]:
        """Every scene by its key."""
        self._write_material()
        found = {}
        for scene in (*self.healthy, *self.sick):
            found[scene.key] = self._played(scene)
            self.told(f"{scene.key}: {found[scene.key].last_words} ({found[scene.key].minutes:.1f} minutes)")
        return found

    def _place(self, key: str) -> Workspace:
        return apart(self.workspace, self.folder / key, line_of(self.workspace, self.start), self.start.name)

    def _played(self, scene: Scene) -> Played:
        place, kept = self._place(scene.key), self.folder / f"{scene.key}.json"
        if not kept.exists():
            options = f"{self.shared[scene.verb]} {scene.words}"
            files = {path.stem: str(path) for path in self.folder.glob("*.jsonl")}
            began = time.monotonic()
            log = self.folder / f"{scene.key}.log"
            words = [scene.verb, "--version", self.start.name, *shlex.split(options.format(**files))]
            code = Household(place, "", (), self.folder).run(words, log.name)
            if code not in (0, 1):
                raise BenchError(f"`nestling {shlex.join(words)}` ended with {code}.", where=str(log))
            minutes = round((time.monotonic() - began) / 60, 1)
            shown = {name: f"{name}.jsonl" for name in files}
            typed = shlex.join(["nestling", *words[:3], *shlex.split(options.format(**shown))])
            atomic.write_json(kept, {"command": typed, "code": code, "minutes": minutes})
        [run] = place.runs.glob(f"{scene.verb.replace('-', '_')}-*")
        events = EventLog(run / "events.jsonl").read()[0]
        told = [event["text"] for event in events if event["kind"] in ("report", "stage_failed", "run_failed")
                and event.get("text")]  # fmt: skip
        last = told[-1] if told else _last_line(self.folder / f"{scene.key}.log")
        return Played(
            **json.loads(kept.read_text("utf-8")),
            last_words=last,
            curves=curves(events),
            answers=_answers(run),
        )

    # Material -----------------------------------------------------------------------------------------------------

    def _write_material(self) -> None:
        """Prompts with a check that is reasonable and with one that is not, a few conversations, rankings, and the same
        answers ranked by a coin."""
        if (self.folder / "noise.jsonl").exists():
            return
        asked = [list(item.messages) for item in curriculum.items("train", 0, ["everyday"], _PROMPTS)]
        for name, most in (("prompts", 40), ("short", 8)):
            self._write(name, ({"prompt": p, "check": {"name": "max_words", "n": most}} for p in asked))
        for name, counts in (("chats", _CHATS), ("few", {"everyday": _FEW})):
            self._write(name, ({"messages": shown} for shown in curriculum.demonstrations(0, counts)))
        place, recipe = self._place("rankings"), self.folder / "rankings.yaml"
        content = yaml.safe_load(
            resources.files("nestling.recipes").joinpath("quickstart.yaml").read_text("utf-8")
        )
        content["rank"] |= {"prompts": _RANKED, "samples": 2}
        atomic.write_text(recipe, yaml.safe_dump(content))
        words = ["rank", "--version", self.start.name, "--recipe", str(recipe)]
        Household(place, "", (), self.folder).must(words, "rankings.log")
        [path] = place.runs.glob("rank-*/rankings.jsonl")
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        self._write("rankings", rows)
        self._write("noise", _by_a_coin(rows))

    def _write(self, name: str, rows: Iterator[Mapping[str, Any]] | Sequence[Mapping[str, Any]]) -> None:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        atomic.write_text(self.folder / f"{name}.jsonl", "".join(lines))


def _by_a_coin(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    drawn = random.Random(0)
    for row in rows:
        yield {**row, "ranks": drawn.sample(row["ranks"], len(row["ranks"]))}


def curves(events: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Every figure that a run of one stage logs, by its name."""
    found = [figures for figures in logged_curves(events).values() if figures]
    return {name: sorted(points.items()) for name, points in found[0].items()} if found else {}


def _answers(run: Path) -> list[tuple[str, str]]:
    written = sorted(run.glob("transcripts/*.json"))
    rows = json.loads(written[-1].read_text("utf-8")) if written else []
    return [(row["messages"][-1]["content"], row["answer"]) for row in rows[:_SHOWN]]


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


# The page ---------------------------------------------------------------------------------------------------------


def write_gallery(
    folder: Path,
    hardware: Hardware,
    start: Version,
    gallery: Gallery,
    found: Mapping[str, Played],
    command: str,
) -> Path:
    """``gallery.md`` and its pictures."""
    minutes = sum(played.minutes for played in found.values())
    lines = [
        "# A gallery of curves", "",
        f"{machine(hardware)}. Command: `{command}`. {minutes:.0f} minutes in all, begun with {start.name}.", "",
        "Small runs of one stage each, so that a thing can be seen in minutes: their figures are no measure of what a "
        "whole raising reaches. Blue is the healthy run, orange the sick one of the same stage, with the same seed, "
        "data and length where nothing else is said. All figures of a run are in its `events.jsonl`.", "",
        "# Healthy", "",
    ]  # fmt: skip
    for scene in gallery.healthy:
        lines += _section(folder, scene, scene.curves, found[scene.key], None)
    lines += ["# Sick", ""]
    by_verb = {scene.verb: scene for scene in gallery.healthy}
    for scene in gallery.sick:
        well = by_verb[scene.verb]
        lines += _section(folder, scene, well.curves, found[scene.key], found[well.key])
    page = folder / "gallery.md"
    atomic.write_text(page, "\n".join(lines))
    return page


def _section(
    folder: Path, scene: Scene, names: Sequence[str], played: Played, well: Played | None
) -> list[str]:
    picture = f"pictures/gallery-{scene.key}.svg"
    atomic.write_text(folder / picture, _drawn(scene.key, names, played, well))
    lines = [f"## {scene.title}", "", f"![{scene.title}]({picture})", "", f"- **Look for** {scene.see}"]
    if scene.do:
        lines.append(f"- **Do** {scene.do}")
    ended = "" if played.code == 0 else f", which ended with code {played.code}"
    lines += [f"- **Run** `{played.command}` ({played.minutes:.1f} minutes){ended}: {played.last_words}", ""]
    heads = ["figure", "first", "last"] if well is None else ["figure", "healthy", "", "sick", ""]
    lines += ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for name in names:
        cells = [*_ends(well, name), *_ends(played, name)] if well else _ends(played, name)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    if scene.verb == "ppo":
        lines += ["", "What it said at last:", ""]
        lines += [f"- {_quoted(question)} {_quoted(answer)}" for question, answer in played.answers]
    return [*lines, ""]


def _ends(played: Played, name: str) -> list[str]:
    points = played.curves.get(name)
    return [f"{points[0][1]:.3g}", f"{points[-1][1]:.3g}"] if points else ["", ""]


def _quoted(text: str) -> str:
    """Text of a model or a person on one line of Markdown, as code, which nothing in it ends."""
    return "`" + " ".join(text.split()).replace("`", "'") + "`" if text.strip() else "(nothing)"


def _drawn(key: str, names: Sequence[str], played: Played, well: Played | None) -> str:
    canvas = Canvas(figsize=(2.7 * len(names), 2.2), layout="constrained")
    grid = canvas.subplots(1, len(names), squeeze=False).flat
    for axes, name in zip(grid, names, strict=True):
        for run, colour in ((well, "#3d7ea6"), (played, "#e08e45" if well else "#3d7ea6")):
            if run is not None and (points := run.curves.get(name)):
                axes.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    linewidth=1.4,
                    marker="." if len(points) < 20 else "",
                )
        axes.set_title(name, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        plain(axes)
    return as_svg(canvas, f"gallery {key}")
