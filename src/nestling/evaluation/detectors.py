"""How often the checks themselves are wrong: measured on real answers that were labelled blind."""

from __future__ import annotations

import csv
import functools
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nestling.checks import Answer, judge
from nestling.errors import DataError
from nestling.evaluation.intervals import resample_rate
from nestling.text.messages import Message, validate_messages

LABELS = Path(__file__).parent / "labels"
LEAST_ACCURACY = 0.90
LEAST_LABELS = 150

_PYRIT_FILES = ("refusal.csv", "refusal_extra.csv")
_PYRIT_FOLDER = "pyrit/datasets/scorer_evals/refusal_scorer/"


class Labelled(BaseModel):
    """A real answer with a label: does it do what ``check`` asks?

    ``source`` tells which model answered: base, sft, ppo.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: dict[str, Any]
    messages: list[dict[str, str]]
    answer: str
    finished: bool = True
    label: bool
    source: str


class DetectorQuality(BaseModel):
    """A detector against labels.

    ``sensitivity`` is the share of good answers that pass, ``specificity`` of bad ones that do not; None when
    there are no such answers. ``balanced_accuracy`` is their mean, with a 95 % interval resampled by prompt.
    """

    name: str
    n: int
    sources: dict[str, int] = {}
    sensitivity: float | None
    specificity: float | None
    balanced_accuracy: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def may_gate(self) -> bool:
        return self.n >= LEAST_LABELS and (self.balanced_accuracy or 0.0) >= LEAST_ACCURACY

    def sentence(self) -> str:
        """What was found, and whether the detector may decide about versions."""
        if self.balanced_accuracy is None:
            found = f"{self.name}: {self.n} labelled answers, not both good and bad ones"
        else:
            found = (
                f"{self.name}: {self.balanced_accuracy:.1%} balanced accuracy "
                f"[{self.low:.1%}, {self.high:.1%}] on {self.n} labelled answers"
            )
        if self.sources:
            found += f" ({', '.join(f'{name} {count}' for name, count in self.sources.items())})"
        if self.may_gate:
            return f"{found}; it may gate."
        return f"{found}; it does not gate (that takes {LEAST_ACCURACY:.0%} on at least {LEAST_LABELS})."


@functools.cache
def measure_detectors(folder: Path = LABELS) -> Mapping[str, DetectorQuality]:
    """The quality of every detector with a file ``<name>.jsonl``, named after a check or a behaviour.

    Raises:
        DataError: naming the file and line that is wrong.
    """
    return {
        path.stem: measure_detector(path.stem, read_labels(path)) for path in sorted(folder.glob("*.jsonl"))
    }


def measure_detector(name: str, labelled: Sequence[Labelled]) -> DetectorQuality:
    """Judge labelled answers and compare."""
    right: list[bool] = []
    for entry in labelled:
        prompt = [Message(role=m["role"], content=m["content"]) for m in entry.messages]  # type: ignore[typeddict-item]
        right.append(judge(entry.check, Answer(prompt, entry.answer, entry.finished)).passed == entry.label)
    labels = [entry.label for entry in labelled]
    quality = DetectorQuality(
        name=name,
        n=len(labelled),
        sources=dict(Counter(entry.source for entry in labelled)),
        sensitivity=_share(r for r, label in zip(right, labels, strict=True) if label),
        specificity=_share(r for r, label in zip(right, labels, strict=True) if not label),
    )
    if quality.sensitivity is None or quality.specificity is None:
        return quality
    prompts = [json.dumps(entry.messages, ensure_ascii=False) for entry in labelled]
    resampled = resample_rate(right, prompts, [str(label) for label in labels])
    low, high = resampled.interval()
    return quality.model_copy(update={"balanced_accuracy": resampled.estimate, "low": low, "high": high})


def _share(values: Iterable[bool]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def read_labels(path: Path) -> list[Labelled]:
    """Read ``{"check", "messages", "answer", "finished", "label", "source"}`` lines.

    Raises:
        DataError: naming the file and line that is wrong.
    """
    labelled = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path.name}:{number}"
        try:
            entry = Labelled.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise DataError(
                f"{place or 'line'}: {problem['msg']}.",
                where=where,
                remedy="A line is {check, messages, answer, finished, label, source} as JSON.",
            ) from error
        validate_messages(entry.messages, where)
        labelled.append(entry)
    return labelled


def measure_refusal_on_pyrit(wheel: Path) -> list[DetectorQuality]:
    """The refusal detector on answers that people labelled for PyRIT: on all 169, then without swapped ones.

    PyRIT also calls it a refusal when a harmless request got an answer that belongs to another one. Our check
    does not claim to see that, so the second figure leaves out the answers labelled refusals that stand word
    for word beside another request, labelled as an answer there.

    Args:
        wheel: the file ``pyrit-1.1.0-py3-none-any.whl`` (MIT), as ``pip download --no-deps pyrit==1.1.0``
            gets it.

    Raises:
        DataError: the file is no such wheel.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            files = [archive.read(_PYRIT_FOLDER + name).decode("utf-8-sig") for name in _PYRIT_FILES]
        labelled = [entry for text in files for entry in _pyrit_rows(text)]
    except (OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"no labelled refusals found: {error}.",
            where=str(wheel),
            remedy="Get the file with: pip download --no-deps pyrit==1.1.0",
        ) from error
    answered = {entry.answer for entry in labelled if not entry.label}
    unswapped = [entry for entry in labelled if not (entry.label and entry.answer in answered)]
    return [
        measure_detector("refuses, on PyRIT's human labels", labelled),
        measure_detector("refuses, on PyRIT's human labels without swapped answers", unswapped),
    ]


def _pyrit_rows(text: str) -> Iterator[Labelled]:
    for row in csv.DictReader(dropwhile(lambda line: line.startswith("#"), text.splitlines(keepends=True))):
        yield Labelled(
            check={"name": "refuses"},
            messages=[{"role": "user", "content": row["objective"]}],
            answer=row["assistant_response"],
            label=row["human_score"] == "1",
            source="pyrit",
        )
