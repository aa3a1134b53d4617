"""Judgments for tests: answers in a real database, and people who judge them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from nestling.feedback import Recorder
from nestling.feedback.people import Person
from nestling.generation.protocol import Completion, Sampling
from nestling.storage import open_database
from nestling.text.messages import Message


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    database = open_database(tmp_path / "feedback.sqlite")
    yield Recorder(database)
    database.close()


def person(name: str) -> Person:
    return Person.account(name)


def prompt(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def answers(
    recorder: Recorder, question: str, texts: Sequence[str], versions: Sequence[str] = ()
) -> list[str]:
    """Ids of answers to one question."""
    return [
        recorder.record_generation(
            versions[at] if versions else "v1-base",
            prompt(question),
            Sampling(),
            Completion(text, "stop", 3, 2),
        )
        for at, text in enumerate(texts)
    ]
