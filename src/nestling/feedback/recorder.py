"""Writing down what was answered and what people said about it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Literal, get_args

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from nestling.errors import DataError
from nestling.generation.protocol import Completion, Sampling
from nestling.storage import ChatSession, Database, Generation, Judgment, RankedAnswer
from nestling.text.messages import Message

Thumb = Literal["up", "down", "none"]
Winner = Literal["a", "b", "tie", "both_bad"]


class UnknownAnswer(DataError):
    """A judgment names an answer that was never written down."""


def new_generation_id() -> str:
    """An id that tells nothing about the version behind it."""
    return f"chatcmpl-{uuid.uuid4().hex}"


class Recorder:
    """Adds rows, never changes one. What returned is on disk, also after ``kill -9``.

    ``client`` names a browser, terminal or API client, so that judgments can be split by person.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def record_generation(
        self,
        version: str,
        messages: Sequence[Message],
        sampling: Sampling,
        completion: Completion,
        *,
        generation_id: str | None = None,
        conversation_id: str | None = None,
        client: str | None = None,
    ) -> str:
        """Write down one answer and return its id."""
        generation_id = generation_id or new_generation_id()
        settings = asdict(sampling)
        seed = settings.pop("seed")
        with self.database.write() as session:
            _know(session, client)
            session.add(
                Generation(
                    id=generation_id,
                    conversation_id=conversation_id or generation_id,
                    session_id=client,
                    version=version,
                    messages=[dict(message) for message in messages],
                    answer=completion.text,
                    sampling=settings,
                    seed=seed,
                    finish_reason=completion.finish_reason,
                    prompt_tokens=completion.prompt_tokens,
                    completion_tokens=completion.completion_tokens,
                )
            )
        return generation_id

    def record_thumb(
        self, generation_id: str, value: Thumb, *, reason: str = "", client: str | None = None
    ) -> int:
        """Write down a thumb ("none" takes it back) and return the judgment's number.

        Raises:
            UnknownAnswer: there is no such answer.
            DataError: ``value`` is not a thumb.
        """
        _check_value(value, get_args(Thumb))
        with self.database.write() as session:
            _find(session, generation_id)
            _know(session, client)
            judgment = Judgment(
                kind="thumb", generation_id=generation_id, value=value, reason=reason, session_id=client
            )
            session.add(judgment)
            session.flush()
            return judgment.id

    def record_comparison(
        self, a: str, b: str, winner: Winner, *, reason: str = "", client: str | None = None
    ) -> int:
        """Write down which of two answers to one prompt was better and return the judgment's number.

        Args:
            a: id of the answer shown first or on the left.
            b: id of the other one.
            winner: "a", "b", "tie" or "both_bad".

        Raises:
            UnknownAnswer: there is no such answer.
            DataError: they are the same or answer different prompts, or ``winner`` is none of these.
        """
        _check_value(winner, get_args(Winner))
        with self.database.write() as session:
            first, second = _find(session, a), _find(session, b)
            if a == b or first.messages != second.messages:
                raise DataError(
                    f"answers {a!r} and {b!r} cannot be compared.",
                    remedy="Compare two different answers to the same prompt.",
                )
            _know(session, client)
            judgment = Judgment(
                kind="vote",
                generation_id=a,
                other_generation_id=b,
                value=winner,
                reason=reason,
                session_id=client,
            )
            session.add(judgment)
            session.flush()
            return judgment.id

    def record_ranking(
        self,
        generation_ids: Sequence[str],
        ranks: Sequence[int],
        *,
        all_bad: bool = False,
        reason: str = "",
        client: str | None = None,
    ) -> int:
        """Write down the order of several answers to one prompt and return the judgment's number.

        Args:
            generation_ids: in the order they were shown in.
            ranks: of each; 1 is the best, equal ranks a tie, and none is left out: [2, 1, 2], not [3, 1, 3].
            all_bad: none of them is good, whatever their order.

        Raises:
            UnknownAnswer: there is no such answer.
            DataError: fewer than two answers, one twice, other prompts, or ranks that are no ranking.
        """
        if sorted(set(ranks)) != list(range(1, len(set(ranks)) + 1)) or len(ranks) != len(generation_ids):
            raise DataError(
                f"{list(ranks)} does not rank {len(generation_ids)} answers.",
                remedy="Give each a rank: 1 for the best, the next number for the next, equal numbers for a tie.",
            )
        with self.database.write() as session:
            answers = [_find(session, generation_id) for generation_id in generation_ids]
            if len(set(generation_ids)) < max(2, len(answers)) or any(
                answer.messages != answers[0].messages for answer in answers
            ):
                raise DataError(
                    "these answers cannot be ranked.", remedy="Rank different answers to the same prompt."
                )
            _know(session, client)
            judgment = Judgment(
                kind="ranking",
                generation_id=generation_ids[0],
                value="all_bad" if all_bad else "ranked",
                reason=reason,
                session_id=client,
                answers=[
                    RankedAnswer(position=position, generation_id=answer.id, rank=rank)
                    for position, (answer, rank) in enumerate(zip(answers, ranks, strict=True))
                ],
            )
            session.add(judgment)
            session.flush()
            return judgment.id

    def record_rewrite(
        self, generation_id: str, text: str, *, reason: str = "", client: str | None = None
    ) -> int:
        """Write down the better answer that a person wrote and return the judgment's number.

        Raises:
            UnknownAnswer: there is no such answer.
            DataError: nothing was written, or what was there before.
        """
        with self.database.write() as session:
            generation = _find(session, generation_id)
            if not text.strip() or text.strip() == generation.answer.strip():
                raise DataError("nothing was changed.", remedy="Write the answer as it should have been.")
            _know(session, client)
            judgment = Judgment(
                kind="rewrite",
                generation_id=generation_id,
                value="rewritten",
                text=text.strip(),
                reason=reason,
                session_id=client,
            )
            session.add(judgment)
            session.flush()
            return judgment.id

    def versions(self, generation_ids: Sequence[str]) -> list[str]:
        """Which versions gave these answers.

        Raises:
            UnknownAnswer: there is no such answer.
        """
        with self.database.read() as session:
            return [_find(session, generation_id).version for generation_id in generation_ids]


def _find(session: Session, generation_id: str) -> Generation:
    generation = session.get(Generation, generation_id)
    if generation is None:
        raise UnknownAnswer(f"there is no recorded answer {generation_id!r}.")
    return generation


def _know(session: Session, client: str | None) -> None:
    if client is None or session.get(ChatSession, client) is not None:
        return
    # Two first requests of one client may come at the same moment.
    with suppress(IntegrityError), session.begin_nested():
        session.add(ChatSession(id=client))


def _check_value(value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise DataError(f"unknown judgment {value!r}.", remedy=f"Use one of {', '.join(allowed)}.")
