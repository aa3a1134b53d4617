"""What an evaluation and a training run found, as ``report.html`` in one file and as Markdown with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from nestling.evaluation import plots
from nestling.evaluation.compare import Comparison, ordered_differences, points
from nestling.evaluation.detectors import DetectorQuality
from nestling.evaluation.measures import Measure
from nestling.evaluation.results import Figure, Results, percent_with_interval
from nestling.evaluation.verdicts import Row
from nestling.workspace import atomic

UNSELECTED = 20
"""Transcripts of a Markdown report."""

_PAGES = Environment(
    loader=PackageLoader("nestling.evaluation", "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEXTS = Environment(  # Markdown: names of measures and versions, numbers, sentences of the gate
    loader=PackageLoader("nestling.evaluation", "templates"),
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,
)


@dataclass(frozen=True)
class Pictures:
    """A report's pictures as SVG: ``bars`` of every version, ``wins`` of each comparison, ``curves`` by stage."""

    bars: str
    wins: list[str]
    curves: dict[str, str]

    @classmethod
    def draw(
        cls,
        versions: Sequence[Results],
        comparisons: Sequence[Comparison],
        events: Sequence[Mapping[str, Any]],
    ) -> Pictures:
        wins = [plots.wins_and_losses(comparison) for comparison in comparisons]
        return cls(plots.behaviour_bars(versions), wins, plots.training_curves(events))


def write_report(
    path: Path,
    versions: Sequence[Results],
    *,
    title: str = "Nestling report",
    sentences: Sequence[str] = (),
    comparisons: Sequence[Comparison] = (),
    events: Sequence[Mapping[str, Any]] = (),
    detectors: Sequence[DetectorQuality] = (),
    pictures: Pictures | None = None,
    samples: int = 2,
) -> None:
    """Write the page, atomically.

    Args:
        versions: results on one suite, oldest first.
        sentences: what was decided, in plain words.
        comparisons: pairs of versions, held-out checks shown apart.
        events: a run's ``events.jsonl``; its ``step`` events become curves, its reward model's report a table.
        detectors: how right the checks are.
        pictures: drawn here unless they were drawn before.
        samples: transcripts shown of each behaviour.

    Raises:
        WorkspaceError: the place cannot be written.
    """
    pictures = pictures or Pictures.draw(versions, comparisons, events)
    # Markup: the pictures are matplotlib's own SVG, which escapes the texts in it.
    page = _PAGES.get_template("report.html").render(
        title=title,
        sentences=sentences,
        versions=versions,
        rows=_rows(versions),
        bars=Markup(pictures.bars),
        comparisons=[(c, Markup(svg)) for c, svg in zip(comparisons, pictures.wins, strict=True)],
        curves={stage: Markup(svg) for stage, svg in pictures.curves.items()},
        detectors=detectors,
        reward_model=_reward_model(events),
        share=_share,
        transcripts=_transcripts(versions, samples),
        percent=percent_with_interval,
        points=points,
    )
    atomic.write_text(path, page)


def write_markdown(
    path: Path,
    versions: Sequence[Results],
    *,
    title: str,
    facts: Sequence[str] = (),
    sentences: Sequence[str] = (),
    comparisons: Sequence[Comparison] = (),
    events: Sequence[Mapping[str, Any]] = (),
    detectors: Sequence[DetectorQuality] = (),
    pictures: Pictures | None = None,
) -> None:
    """Write the tables as Markdown, to be kept with the code, and the pictures in ``pictures`` beside it.

    Args as ``write_report``, and ``facts``: when and on what it was made.
    """
    drawn = pictures or Pictures.draw(versions, comparisons, events)
    files = {"behaviours": drawn.bars}
    files |= {f"wins-{c.first}-{c.second}": svg for c, svg in zip(comparisons, drawn.wins, strict=True)}
    files |= {f"curves-{stage}": svg for stage, svg in drawn.curves.items()}
    for name, svg in files.items():
        if svg:
            atomic.write_text(path.parent / "pictures" / f"{name}.svg", svg)
    costs: dict[str, dict[str, float]] = {}
    for event in events:
        if event["kind"] == "stage_cost":
            cost = costs.setdefault(event["stage"], {"seconds": 0.0, "memory": 0.0})
            cost["seconds"] += event["seconds"]
            cost["memory"] = max(cost["memory"], event["memory"] or 0)
    page = _TEXTS.get_template("report.md").render(
        title=title,
        facts=facts,
        sentences=sentences,
        versions=versions,
        rows=_rows(versions),
        sizes=lambda figures: "/".join(map(str, sorted({figure.n for figure in figures if figure}))),
        comparisons=comparisons,
        ordered=ordered_differences,
        costs=costs,
        detectors=detectors,
        reward_model=_reward_model(events),
        share=_share,
        pictures=[name for name, svg in files.items() if svg],
        transcripts=unselected(versions),
        on_one_line=_on_one_line,
        percent=percent_with_interval,
        points=points,
    )
    atomic.write_text(path, page)


def _reward_model(events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """What the run measured of its reward model (``workflow.reward_report``), None without one."""
    told = [e for e in events if e["kind"] == "report" and e.get("stage") == "reward_model"]
    # A run that began before calibration was told apart by kinds has less to show than the section needs.
    return told[-1] if told and isinstance(told[-1].get("calibration"), dict) else None


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _rows(versions: Sequence[Results]) -> list[tuple[Measure, list[Figure | None]]]:
    """Every measure with its figure in each version, held-out ones last."""
    measures = {m.name: m for version in versions for m in version.measures}
    rows = [
        (measure, [version.figures.get(name) for version in versions])
        for held_out in (False, True)
        for name, measure in measures.items()
        if measure.held_out is held_out
    ]
    return [(measure, figures) for measure, figures in rows if any(figures)]


def _transcripts(versions: Sequence[Results], samples: int) -> list[dict[str, Any]]:
    """For each behaviour its first prompts of different templates, with every version's answer."""
    seen: dict[str, set[str]] = {}
    chosen = []
    for row in versions[0].rows:
        templates = seen.setdefault(row.behaviour, set())
        if len(templates) < samples and row.template not in templates:
            templates.add(row.template)
            chosen.append(row)
    return _with_replies(chosen, versions)


def unselected(versions: Sequence[Results], count: int = UNSELECTED) -> list[dict[str, Any]]:
    """So many prompts drawn by a hash of their ids, which knows nothing of answers, with every version's answer."""
    drawn = sorted(versions[0].rows, key=lambda row: sha256(row.item.encode()).digest())[:count]
    return _with_replies(drawn, versions)


def _with_replies(rows: Sequence[Row], versions: Sequence[Results]) -> list[dict[str, Any]]:
    answers = [{row.item: row for row in version.rows} for version in versions]
    return [
        {
            "behaviour": row.behaviour,
            "messages": row.messages,
            "replies": [
                (v.name, a[row.item]) for v, a in zip(versions, answers, strict=True) if row.item in a
            ],
        }
        for row in rows
    ]


def _on_one_line(text: str) -> str:
    """For a fenced block of Markdown: no line of a model's answer can end it."""
    return " / ".join(part.strip() for part in text.splitlines() if part.strip())
