"""One answer from request to record: lease a version, stream, write down what was said."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from nestling.compute.courtesy import sign_up
from nestling.errors import NestlingError
from nestling.feedback import Recorder, new_generation_id
from nestling.feedback.people import Person
from nestling.generation.best_of import chosen, variants
from nestling.generation.protocol import Chunk, Completion, Request, Sampling
from nestling.serving.pool import CURRENT, ModelPool
from nestling.serving.worker import Chooser, EngineWorker, Stream
from nestling.text.messages import Message

log = logging.getLogger(__name__)

# A person may judge an answer in the moment they stop it; writing it down takes a few milliseconds.
_WRITTEN_SECONDS = 5.0
_REMEMBERED = 10_000  # blind answers; after a restart nobody knows any more whether one was


@dataclass(frozen=True)
class Question:
    """What is asked, and by whom.

    ``fit_context`` lets ``sampling.max_tokens`` shrink to the room the context leaves. ``record`` False
    writes nothing down; such an answer cannot be judged. ``blind``: whoever asked is not told what answers.
    """

    messages: Sequence[Message]
    sampling: Sampling
    model: str = CURRENT
    fit_context: bool = False
    client: Person | None = None
    conversation_id: str | None = None
    record: bool = True
    blind: bool = False


@dataclass(frozen=True)
class Several:
    """Streams that are cancelled together."""

    streams: Sequence[Stream]

    def cancel(self) -> None:
        for stream in self.streams:
            stream.cancel()


class AskerGone(NestlingError):
    """Nobody waits for the answer any more."""


class Answer:
    """An answer on its way. Iterate for its chunks; the last one comes once the answer is written down.

    Attributes:
        id: names the answer in judgments.
        version: what answers; known once ``taken`` returned.
        done: set when nothing more will happen.
    """

    def __init__(self, question: Question) -> None:
        self.id = new_generation_id()
        self.created = int(time.time())
        self.question = question
        self.version = ""
        self.card_hash: str | None = None
        self.done = asyncio.Event()
        self._items: asyncio.Queue[Chunk | Exception] = asyncio.Queue()
        self._stream: Stream | Several | None = None
        self._task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Stop computing. What was said so far is still written down."""
        if self._stream is not None:
            self._stream.cancel()
        elif self._task is not None:
            self._task.cancel()

    async def taken(self) -> None:
        """Wait until the engine took the request.

        Raises:
            UnknownVersion, NotReady, QueueFull: see ``ModelPool.lease``.
            RequestError: the request does not fit the context.
            DataError: the chat template refuses the conversation.
            AskerGone: it was cancelled before.
        """
        await self._next()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        completion: Completion | None = None
        while completion is None:
            chunk = await self._next()
            completion = chunk.completion
            yield chunk

    async def whole(self) -> Completion:
        """The completion, once it is there."""
        async for chunk in self:
            completion = chunk.completion
        assert completion is not None  # a stream ends with it or raises
        return completion

    def _notice_cancellation(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._items.put_nowait(AskerGone("the request was cancelled."))

    async def _next(self) -> Chunk:
        item = await self._items.get()
        if isinstance(item, Exception):
            raise item
        return item


class Answers:
    """Starts answers and keeps them going whatever becomes of the request that asked.

    Args:
        sign: kept up while anybody is answered, so that a training makes way.

    Attributes:
        recording_error: why the last answer could not be written down, or None.
    """

    def __init__(self, pool: ModelPool, recorder: Recorder, sign: Path) -> None:
        self.pool, self.recorder, self.sign = pool, recorder, sign
        self.recording_error: str | None = None
        self._blind: dict[str, None] = {}
        self._open: dict[str, Answer] = {}
        self._sign = AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()

    def were_blind(self, generation_ids: Sequence[str]) -> bool:
        """Whether nobody has been told which version gave these answers."""
        return all(generation_id in self._blind for generation_id in generation_ids)

    def told(self, generation_ids: Sequence[str]) -> None:
        """From now on it is known which version gave these answers."""
        for generation_id in generation_ids:
            self._blind.pop(generation_id, None)

    def start(self, question: Question) -> Answer:
        """Begin to answer. Await ``Answer.taken`` first, then iterate."""
        answer = Answer(question)
        if question.blind:
            self._blind[answer.id] = None
            if len(self._blind) > _REMEMBERED:
                del self._blind[next(iter(self._blind))]
        answer._task = task = asyncio.create_task(self._run(answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(answer._notice_cancellation)
        return answer

    async def written(self, generation_id: str) -> None:
        """Wait until an answer that was on its way a moment ago is written down."""
        if answer := self._open.get(generation_id):
            with suppress(TimeoutError):
                await asyncio.wait_for(answer.done.wait(), _WRITTEN_SECONDS)

    async def close(self) -> None:
        """Wait for the last answers to be written down."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, answer: Answer) -> None:
        alone = not self._open
        self._open[answer.id] = answer
        if alone:
            await self._sign.enter_async_context(sign_up(self.sign))
        try:
            async with self.pool.lease(answer.question.model) as worker:
                await self._follow(answer, worker)
        except Exception as error:  # of any kind: it belongs to the request that waits for this answer
            answer._items.put_nowait(error)
        finally:
            del self._open[answer.id]
            if not self._open:
                await self._sign.aclose()
            answer.done.set()

    async def _follow(self, answer: Answer, worker: EngineWorker) -> None:
        question = answer.question
        answer.version, answer.card_hash = worker.version.name, worker.version.card_hash
        if worker.chooser is not None:
            return await self._choose(answer, worker, worker.chooser)
        stream = worker.submit(Request(question.messages, question.sampling), question.fit_context)
        answer._stream = stream
        said = ""
        try:
            async for chunk in stream:
                said += chunk.text
                if chunk.completion is not None:
                    await self._record(answer, stream.request.sampling, chunk.completion)
                answer._items.put_nowait(chunk)
        except Exception:  # whatever ended it, people have read this much and may judge it
            cut = Completion(said, "cancelled", stream.prompt_tokens, 0)
            await self._record(answer, stream.request.sampling, cut)
            raise

    async def _choose(self, answer: Answer, worker: EngineWorker, chooser: Chooser) -> None:
        """Answer several times, and give the best at once: nobody knows it before all are there."""
        question = answer.question
        streams: list[Stream] = []
        answer._stream = Several(streams)
        completions = []
        try:
            for sampling in variants(question.sampling, chooser.count):
                streams.append(worker.submit(Request(question.messages, sampling), question.fit_context))
            for number, stream in enumerate(streams):
                async for chunk in stream:
                    if number == 0 and not chunk.text and chunk.completion is None:
                        answer._items.put_nowait(chunk)  # the engine took it
                    if chunk.completion is not None:
                        completions.append(chunk.completion)
        except BaseException:  # the queue is full, say: nobody waits for the others
            answer._stream.cancel()
            raise
        best = await asyncio.to_thread(chosen, completions, chooser.judge)
        used = streams[completions.index(best)].request.sampling
        await self._record(answer, used, best)
        answer._items.put_nowait(Chunk(best.text, best))

    async def _record(self, answer: Answer, sampling: Sampling, completion: Completion) -> None:
        said_nothing = completion.finish_reason == "cancelled" and not completion.text
        if said_nothing or not answer.question.record:
            return
        try:
            await asyncio.to_thread(
                self.recorder.record_generation,
                answer.version,
                answer.question.messages,
                sampling,
                completion,
                generation_id=answer.id,
                conversation_id=answer.question.conversation_id,
                client=answer.question.client,
                card_hash=answer.card_hash,
            )
            self.recording_error = None
        except (
            Exception
        ) as error:  # a full disk, say, must not take the answer from the person who waits for it
            log.error("answer %s was not written down: %s", answer.id, error)
            self.recording_error = str(error)
