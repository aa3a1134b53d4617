"""Writing down what was answered and what people said about it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from nestling.errors import DataError
from nestling.feedback.export import withdrawn
from nestling.feedback.people import Person
from nestling.generation.protocol import Completion, Sampling
from nestling.storage import ChatSession, Database, DeskItem, Generation, Judgment, RankedAnswer, Withdrawal
from nestling.text.messages import Message

Thumb = Literal["up", "down", "none"]
Winner = Literal["a", "b", "tie", "both_bad"]
Score = Literal["1", "2", "3", "4", "5"]
Client = Person | str | None
"""Who speaks: a person, or a name that somebody gave."""


@dataclass(frozen=True)
class Origin:
    """Where a judgment comes from that was not made here: the file's number, a hash of what the row says, and when it
    was said, where the file tells."""

    file: int
    row: str
    at: datetime | None


_AT_ONCE = 500


class UnknownAnswer(DataError):
    """A judgment names an answer that was never written down."""


def new_generation_id() -> str:
    """An id that tells nothing about the version behind it."""
    return f"chatcmpl-{uuid.uuid4().hex}"


class Recorder:
    """Adds rows, never changes one. What returned is on disk, also after ``kill -9``.

    ``client`` says who speaks, so that judgments can be split by person. ``blinded`` says whether they could not see
    which version gave which answer, ``desk_item`` that they were asked at the desk.
    """

    def __init__(self, database: Database, session: Session | None = None) -> None:
        self.database = database
        self._session = session
        self.origin: Origin | None = None

    @contextmanager
    def together(self) -> Iterator[Recorder]:
        """A recorder whose rows are written all or not at all, when the block ends. Its judgments have its ``origin``,
        where that is set."""
        with self.database.write() as session:
            yield Recorder(self.database, session)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One of its own, or the one that all its rows share."""
        if self._session is not None:
            yield self._session
        else:
            with self.database.write() as session:
                yield session

    def record_generation(
        self,
        version: str,
        messages: Sequence[Message],
        sampling: Sampling,
        completion: Completion,
        *,
        generation_id: str | None = None,
        conversation_id: str | None = None,
        client: Client = None,
        card_hash: str | None = None,
    ) -> str:
        """Write down one answer and return its id."""
        generation_id = generation_id or new_generation_id()
        settings = asdict(sampling)
        seed = settings.pop("seed")
        with self.transaction() as session:
            session.add(
                Generation(
                    id=generation_id,
                    conversation_id=conversation_id or generation_id,
                    session_id=know(session, client),
                    version=version,
                    messages=[dict(message) for message in messages],
                    answer=completion.text,
                    sampling=settings,
                    seed=seed,
                    finish_reason=completion.finish_reason,
                    prompt_tokens=completion.prompt_tokens,
                    completion_tokens=completion.completion_tokens,
                    card_hash=card_hash,
                )
            )
        return generation_id

    def record_foreign_answers(
        self, answers: Mapping[str, tuple[str, Sequence[Message], str, bool]]
    ) -> list[Generation]:
        """Write down answers that no version here gave, by their ids, unless they are there: the version as it is
        written down here, the prompt, the text, whether it ended by itself; nothing tells how they were sampled.

        Returns all of them: while they are held, the transaction need not look them up again.
        """
        with self.transaction() as session:
            held: list[Generation] = []
            for some in batched(answers, _AT_ONCE):
                held += session.scalars(select(Generation).where(Generation.id.in_(some)))
            there = {generation.id for generation in held}
            new = [
                Generation(
                    id=name, conversation_id=name, version=version, messages=[dict(message) for message in messages],
                    answer=answer, sampling={}, seed=0, finish_reason="stop" if finished else "length",
                    prompt_tokens=0, completion_tokens=0,
                )
                for name, (version, messages, answer, finished) in answers.items() if name not in there
            ]  # fmt: skip
            session.add_all(new)
            session.flush()
            return held + new

    def record_thumb(
        self, generation_id: str, value: Thumb, *, reason: str = "", client: Client = None
    ) -> int:
        """Write down a thumb ("none" takes it back) and return the judgment's number.

        Raises:
            UnknownAnswer: there is no such answer.
            DataError: ``value`` is not a thumb.
        """
        _check_value(value, get_args(Thumb))
        with self.transaction() as session:
            _find(session, generation_id)
            return self._add(
                session, client, kind="thumb", generation_id=generation_id, value=value, reason=reason
            )

    def record_score(
        self, generation_id: str, value: Score, *, reason: str = "", client: Client = None,
        blinded: bool | None = None, desk_item: int | None = None,
    ) -> int:  # fmt: skip
        """Write down how good one answer is by itself, "1" to "5", and return the judgment's number.

        Raises:
            UnknownAnswer: there is no such answer.
            DataError: ``value`` is none of these.
        """
        _check_value(value, get_args(Score))
        with self.transaction() as session:
            _find(session, generation_id)
            return self._add(
                session, client, kind="score", generation_id=generation_id, value=value, reason=reason,
                blinded=blinded, desk_item_id=desk_item,
            )  # fmt: skip

    def record_comparison(
        self, a: str, b: str, winner: Winner, *, reason: str = "", client: Client = None,
        blinded: bool | None = None, desk_item: int | None = None,
    ) -> int:  # fmt: skip
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
        with self.transaction() as session:
            first, second = _find(session, a), _find(session, b)
            if a == b or first.messages != second.messages:
                raise DataError(
                    f"answers {a!r} and {b!r} cannot be compared.",
                    remedy="Compare two different answers to the same prompt.",
                )
            return self._add(
                session, client, kind="vote", generation_id=a, other_generation_id=b, value=winner, reason=reason,
                blinded=blinded, desk_item_id=desk_item,
            )  # fmt: skip

    def record_ranking(
        self,
        generation_ids: Sequence[str],
        ranks: Sequence[int],
        *,
        all_bad: bool = False,
        reason: str = "",
        client: Client = None,
        blinded: bool | None = None,
        desk_item: int | None = None,
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
        with self.transaction() as session:
            answers = [_find(session, generation_id) for generation_id in generation_ids]
            if len(set(generation_ids)) < max(2, len(answers)) or any(
                answer.messages != answers[0].messages for answer in answers
            ):
                raise DataError(
                    "these answers cannot be ranked.", remedy="Rank different answers to the same prompt."
                )
            ranked = [
                RankedAnswer(position=position, generation_id=answer.id, rank=rank)
                for position, (answer, rank) in enumerate(zip(answers, ranks, strict=True))
            ]
            return self._add(
                session, client, kind="ranking", generation_id=generation_ids[0],
                value="all_bad" if all_bad else "ranked", reason=reason, answers=ranked, blinded=blinded,
                desk_item_id=desk_item,
            )  # fmt: skip

    def record_rewrite(
        self, generation_id: str, text: str, *, reason: str = "", client: Client = None
    ) -> int:
        """Write down the better answer that a person wrote and return the judgment's number.

        Raises:
            UnknownAnswer: there is no such answer.
            DataError: nothing was written, or what was there before.
        """
        with self.transaction() as session:
            generation = _find(session, generation_id)
            if not text.strip() or text.strip() == generation.answer.strip():
                raise DataError("nothing was changed.", remedy="Write the answer as it should have been.")
            return self._add(
                session, client, kind="rewrite", generation_id=generation_id, value="rewritten", text=text.strip(),
                reason=reason,
            )  # fmt: skip

    def record_demonstration(self, generation_id: str, *, reason: str = "", client: Client = None) -> int:
        """Write down that an answer is what a person wrote, and return the judgment's number.

        Raises:
            UnknownAnswer: there is no such answer.
        """
        with self.transaction() as session:
            _find(session, generation_id)
            return self._add(
                session, client, kind="demonstration", generation_id=generation_id, value="written", reason=reason
            )  # fmt: skip

    def withdraw(self, judgment: int, client: Client) -> None:
        """Take one's own judgment back for good: no later training set holds it.

        Raises:
            UnknownAnswer: there is no such judgment of this person's.
        """
        with self.transaction() as session:
            found = session.get(Judgment, judgment)
            if found is None or client is None or found.session_id != _person(client).id:
                raise UnknownAnswer(f"there is no judgment {judgment} of yours.")
            session.add(Withdrawal(judgment_id=judgment))

    def withdraw_person(self, client: Client) -> int:
        """Take back for good all that a person has said; returns how many judgments. What they say from now on counts,
        but nothing that a file brings of them later: that was said before.

        Raises:
            UnknownAnswer: nobody of that name has said anything.
        """
        with self.transaction() as session:
            known = session.get(ChatSession, _person(client).id) if client is not None else None
            if known is None:
                raise UnknownAnswer("nobody of that name has said anything here.")
            said = set(session.scalars(select(Judgment.id).where(Judgment.session_id == known.id)))
            count = len(said - withdrawn(session))
            session.add(Withdrawal(session_id=known.id, last_judgment=max(said, default=0)))
            return count

    def versions(self, generation_ids: Sequence[str]) -> list[str]:
        """Which versions gave these answers.

        Raises:
            UnknownAnswer: there is no such answer.
        """
        with self.database.read() as session:
            return [_find(session, generation_id).version for generation_id in generation_ids]

    def _add(self, session: Session, client: Client, **fields: Any) -> int:
        """Add a judgment, which says what it replaces; returns its number."""
        if self.origin is not None:
            fields |= {"import_id": self.origin.file, "import_row": self.origin.row}
            fields |= {"created": self.origin.at} if self.origin.at else {}
        judgment = Judgment(session_id=know(session, client), **fields)
        _check_desk(session, judgment)
        judgment.supersedes = _earlier(session, judgment)
        session.add(judgment)
        session.flush()
        return judgment.id


def _check_desk(session: Session, judgment: Judgment) -> None:
    """What is said to be judged at the desk must lie there: a ranking is of all its answers, a score of one."""
    if judgment.desk_item_id is None:
        return
    item, said = session.get(DeskItem, judgment.desk_item_id), answers_of(judgment)
    shown = {answer.generation_id for answer in item.answers} if item else set()
    if not (said == shown if judgment.kind == "ranking" else said <= shown):
        raise DataError(
            f"these are not the answers that lie on the desk as number {judgment.desk_item_id}.",
            remedy="Judge all answers of one item as `GET /api/desk` gives them.",
        )


def _earlier(session: Session, judgment: Judgment) -> int | None:
    """The newest judgment of the same kind by the same person about the same answers."""
    if judgment.session_id is None:
        return None  # nobody known said it, so nobody known changes their mind
    same = answers_of(judgment)
    query = (
        select(Judgment)
        .where(Judgment.kind == judgment.kind, Judgment.session_id == judgment.session_id)
        .where(Judgment.generation_id.in_(same))
        .order_by(Judgment.id.desc())
    )
    with session.no_autoflush:
        return next((known.id for known in session.scalars(query) if answers_of(known) == same), None)


def batched(values: Iterable[str], size: int) -> Iterator[list[str]]:
    """So many at once: a statement takes only so many values."""
    rest = list(values)
    return (rest[first : first + size] for first in range(0, len(rest), size))


def answers_of(judgment: Judgment) -> frozenset[str]:
    """Ids of the answers that a judgment is about, in no order."""
    if judgment.answers:
        return frozenset(answer.generation_id for answer in judgment.answers)
    return frozenset(filter(None, (judgment.generation_id, judgment.other_generation_id)))


def _find(session: Session, generation_id: str) -> Generation:
    generation = session.get(Generation, generation_id)
    if generation is None:
        raise UnknownAnswer(f"there is no recorded answer {generation_id!r}.")
    return generation


def _person(client: Person | str) -> Person:
    return client if isinstance(client, Person) else Person.claimed(client)


def know(session: Session, client: Client) -> str | None:
    """Make the person known, and return their id."""
    if client is None:
        return None
    person = _person(client)
    if session.get(ChatSession, person.id) is None:
        # Two first requests of one client may come at the same moment.
        with suppress(IntegrityError), session.begin_nested():
            session.add(ChatSession(id=person.id, kind=person.kind))
    return person.id


def _check_value(value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise DataError(f"unknown judgment {value!r}.", remedy=f"Use one of {', '.join(allowed)}.")
