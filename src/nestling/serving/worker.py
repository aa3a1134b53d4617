"""One thread that owns one engine, and the streams through which the event loop hears from it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from queue import SimpleQueue

from nestling.errors import NestlingError, QueueFull
from nestling.generation.best_of import Judge
from nestling.generation.engine import Engine
from nestling.generation.protocol import Chunk, Completion, Request
from nestling.workspace import Version

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chooser:
    """How a version that answers several times chooses: ``count`` answers, the best by ``judge``."""

    judge: Judge
    count: int


class EngineFailed(NestlingError):
    """The engine broke down, or the server is stopping, while an answer was on its way."""


@dataclass(frozen=True)
class _Submit:
    stream: Stream


@dataclass(frozen=True)
class _Cancel:
    stream: Stream


_Item = Chunk | Exception
_Stop = None


class Stream:
    """One answer on its way: an empty chunk once the engine took the request, then text, then the completion.

    Iteration raises what the engine refused or how it failed. Belongs to the event loop.
    """

    def __init__(self, worker: EngineWorker, request: Request, fit_context: bool) -> None:
        self.request, self.fit_context = request, fit_context
        self.text = ""
        self.prompt_tokens = 0
        self._worker = worker
        self._items: asyncio.Queue[_Item] = asyncio.Queue()
        self._ended = False

    def cancel(self) -> None:
        """Stop computing within one step; the stream then ends with a completion marked "cancelled"."""
        self._worker.post(_Cancel(self))

    def put(self, item: _Item) -> None:
        self._items.put_nowait(item)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while not self._ended:
            item = await self._items.get()
            if isinstance(item, Exception):
                self._ended = True
                raise item
            self._ended = item.completion is not None
            yield item


class EngineWorker:
    """Runs an engine in its own thread.

    Args:
        version: what the engine runs.
        engine: handed over; only the thread touches it from now on.
        max_queue: streams that may be open at the same time.
        chooser: where the version gives the best of several answers; used by whoever follows the streams.

    Attributes:
        open_streams: requests handed in and not yet ended.
        failed: the engine broke down; this worker answers nothing any more.
    """

    def __init__(
        self, version: Version, engine: Engine, max_queue: int, chooser: Chooser | None = None
    ) -> None:
        self.version, self.max_queue, self.chooser = version, max_queue, chooser
        self.open_streams = 0
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[_Submit | _Cancel | None] = SimpleQueue()
        self._tickets: dict[int, Stream] = {}
        self._over: EngineFailed | None = None
        self._over_lock = threading.Lock()
        self._thread = threading.Thread(
            target=self._run, args=([engine],), name=f"engine {version.name}", daemon=True
        )
        self._thread.start()

    @property
    def failed(self) -> bool:
        return self._over is not None

    def submit(self, request: Request, fit_context: bool) -> Stream:
        """Queue a request. With ``fit_context`` its ``max_tokens`` shrinks to what the context leaves.

        Raises:
            QueueFull: ``max_queue`` streams are open.
        """
        if self.open_streams >= self.max_queue:
            raise QueueFull(
                f"{self.open_streams} requests are being answered or waiting.",
                remedy="Try again in a moment.",
            )
        stream = Stream(self, request, fit_context)
        self.open_streams += 1
        self.post(_Submit(stream))
        return stream

    def post(self, command: _Submit | _Cancel | None) -> None:
        """Ask the thread to do something before its next step; None stops it."""
        with self._over_lock:
            if self._over is None:
                self._inbox.put(command)
            elif isinstance(command, _Submit):
                self._hand_over([(command.stream, self._over)], ended=1)

    async def close(self) -> None:
        """Stop the thread and let go of the engine; open streams fail."""
        self.post(_Stop)
        await asyncio.to_thread(self._thread.join)

    # -- in the engine's thread --------------------------------------------------------------------

    def _run(self, holder: list[Engine]) -> None:
        # The list lets go of the engine for good: a thread's arguments live as long as the thread object.
        engine = holder.pop()
        try:
            while self._obey(engine):
                events = engine.step()
                self._deliver([(self._tickets[e.ticket], Chunk(e.text, e.completion)) for e in events])
            reason = EngineFailed("the server is stopping.")
        except Exception:  # of any kind: nobody else watches this thread, and every open stream must hear
            log.exception("the engine of %s failed", self.version.name)
            reason = EngineFailed(f"the engine of {self.version.name} failed.", remedy="Try again.")
        with self._over_lock:
            self._over = reason
        streams = list(self._tickets.values())
        while not self._inbox.empty():
            command = self._inbox.get()
            if isinstance(command, _Submit):
                streams.append(command.stream)
        self._deliver([(stream, reason) for stream in streams])

    def _obey(self, engine: Engine) -> bool:
        """Do what was asked since the last step, waiting while there is nothing to compute. False: stop."""
        while engine.active == 0 or not self._inbox.empty():
            command = self._inbox.get()
            if command is None:
                return False
            if isinstance(command, _Submit):
                self._submit(engine, command.stream)
            else:
                self._cancel(engine, command.stream)
        return True

    def _submit(self, engine: Engine, stream: Stream) -> None:
        request = stream.request
        try:
            prompt = engine.tokenizer.render_prompt(request.messages)
            if stream.fit_context:
                room = max(1, engine.context_length - len(prompt))
                limit = min(request.sampling.max_tokens, room)
                stream.request = replace(request, sampling=replace(request.sampling, max_tokens=limit))
            ticket = engine.submit_ids(prompt, stream.request.sampling)
        except NestlingError as error:
            self._deliver([(stream, error)])
            return
        stream.prompt_tokens = len(prompt)
        self._tickets[ticket] = stream
        self._deliver([(stream, Chunk(""))])

    def _cancel(self, engine: Engine, stream: Stream) -> None:
        ticket = next((ticket for ticket, known in self._tickets.items() if known is stream), None)
        if ticket is None:
            return  # it ended by itself in the meantime
        engine.cancel(ticket)
        tokens = len(engine.tokenizer.encode(stream.text))
        self._deliver(
            [(stream, Chunk("", Completion(stream.text, "cancelled", stream.prompt_tokens, tokens)))]
        )

    def _deliver(self, items: list[tuple[Stream, _Item]]) -> None:
        ended = []
        for stream, item in items:
            if isinstance(item, Chunk):
                stream.text += item.text
            if isinstance(item, Exception) or item.completion is not None:
                ended.append(stream)
        if ended:
            self._tickets = {ticket: s for ticket, s in self._tickets.items() if s not in ended}
        if items:
            try:
                self._loop.call_soon_threadsafe(self._hand_over, items, len(ended))
            except RuntimeError:  # the loop is closed: nobody listens any more
                log.debug("the last output of %s found no listener", self.version.name)

    # -- in the event loop -------------------------------------------------------------------------

    def _hand_over(self, items: list[tuple[Stream, _Item]], ended: int) -> None:
        self.open_streams -= ended
        for stream, item in items:
            stream.put(item)
