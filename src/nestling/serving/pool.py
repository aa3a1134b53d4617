"""Which versions are in memory, which one is served, and the swap when the pointer moves."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from nestling.compute.process import give_memory_back
from nestling.errors import NestlingError, QueueFull
from nestling.generation.engine import Engine
from nestling.serving.worker import Chooser, EngineWorker
from nestling.workspace import Version, VersionStore

log = logging.getLogger(__name__)

LoadEngine = Callable[[Version], Engine | tuple[Engine, Chooser]]
"""Makes the engine of a version, with how it chooses where it gives the best of several answers."""

# The name under which the served version is asked for, whichever it is.
CURRENT = "nestling"

_POLL_SECONDS = 0.25
_RETRY_SECONDS = 20.0
_WAIT_SECONDS = 60.0


class UnknownVersion(NestlingError):
    """A request named a version that does not exist or is not offered."""


class NotReady(NestlingError):
    """No version can answer yet."""


class ModelPool:
    """Engines by version, at most ``max_loaded`` of them.

    A version is loaded when it is asked for; the one unused for longest makes room, never one with an answer
    on its way. When the serving pointer moves, the new version is loaded beside the old one, then takes over;
    the old one is freed after its last answer. If the new one cannot be loaded, the old one goes on and
    ``error`` says why. With ``max_loaded`` 1 the old one leaves before the new one is loaded, and requests
    wait in between.

    Attributes:
        serving: the version that answers those who name none.
        error: why the pointer could not be followed, or None.
    """

    def __init__(
        self, versions: VersionStore, load_engine: LoadEngine, *, max_loaded: int = 2, max_queue: int = 32
    ) -> None:
        self.versions, self.max_loaded, self.max_queue = versions, max_loaded, max_queue
        self.serving: Version | None = None
        self.error: str | None = None
        self._load_engine = load_engine
        self._coming: Version | None = None
        self._workers: dict[str, EngineWorker] = {}  # least recently used first
        self._loads: dict[str, asyncio.Task[EngineWorker]] = {}
        self._load_lock = asyncio.Lock()
        self._leases: dict[str, int] = {}
        self._waiting = 0
        self._retired: set[str] = set()
        self._released = asyncio.Event()
        self._settled = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._closed = False

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to follow the serving pointer."""
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop everything; answers on their way fail with a plain error."""
        self._closed = True
        tasks = [*self._loads.values(), *([self._watcher] if self._watcher else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for name in list(self._workers):
            await self._unload(name)

    # -- for requests ------------------------------------------------------------------------------

    @property
    def loading(self) -> str | None:
        """Name of the version about to be served, or None."""
        return self._coming.name if self._coming else None

    def loaded(self) -> list[str]:
        """Names of the versions in memory."""
        return list(self._workers)

    def open_streams(self) -> int:
        """Answers on their way or waiting, over all versions."""
        return sum(worker.open_streams for worker in self._workers.values())

    def resolve(self, name: str) -> Version:
        """The version a request means.

        Raises:
            UnknownVersion: it does not exist, is no chat model, or was rejected and is not the one served.
        """
        if self.serving and name in (CURRENT, self.serving.name):
            return self.serving
        try:
            version = self.versions.get(name)
        except NestlingError as error:
            # the server's folder, which the error names, is nobody else's business
            raise UnknownVersion(error.what, remedy="See /v1/models.") from error
        if not is_offered(version):
            rejected = (
                "was rejected by the gate" if version.card.state == "rejected" else "is not a chat model"
            )
            why = "was removed" if version.card.removed else rejected
            raise UnknownVersion(f"version {name!r} {why} and is not offered.", remedy="See /v1/models.")
        return version

    @asynccontextmanager
    async def lease(self, name: str = CURRENT) -> AsyncIterator[EngineWorker]:
        """The worker of a version, loaded if need be; it stays loaded until the block ends.

        Raises:
            UnknownVersion: see ``resolve``.
            NotReady: nothing is served yet, or the version cannot be loaded.
            QueueFull: too many wait already, or other versions' answers held its place for too long.
        """
        if self._closed:
            raise NotReady("the server is stopping.")
        if self._waiting >= self.max_queue:
            raise QueueFull(
                f"{self._waiting} requests wait for a version to load.", remedy="Try again in a moment."
            )
        self._waiting += 1
        try:
            if name == CURRENT and self.serving is None:
                await self._wait_for_first()
            worker = await self._worker(name)
        finally:
            self._waiting -= 1
        version = worker.version
        self._workers[version.name] = self._workers.pop(version.name)  # now the most recently used
        self._leases[version.name] = self._leases.get(version.name, 0) + 1
        try:
            yield worker
        finally:
            self._leases[version.name] -= 1
            self._released.set()

    async def _wait_for_first(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), _WAIT_SECONDS)
        if self.serving is None:
            raise NotReady(
                self.error or "no version is served yet.",
                remedy="Promote a version: nestling versions promote.",
            )

    async def _worker(self, name: str) -> EngineWorker:
        while True:
            version = self.resolve(name)
            worker = self._workers.get(version.name)
            # While a load waits for room, only the served version goes straight on. The others queue behind
            # it: otherwise their answers, overlapping without end, could keep a promotion waiting for ever.
            # Where only one version fits, the served one gives way to the one that is coming.
            gives_way = self.max_loaded == 1 and name == CURRENT and self._coming is not None
            is_served = self.serving is not None and version.name == self.serving.name and not gives_way
            if worker and not worker.failed and (is_served or not self._loads):
                return worker
            # Where only one version fits, the served one has made room for the next, which then answers.
            awaited = self._coming if name == CURRENT and self._coming else version
            try:
                async with asyncio.timeout(_WAIT_SECONDS):
                    await asyncio.shield(self._load_task(awaited))
            except TimeoutError:
                raise QueueFull(
                    f"there is no room to load version {version.name!r} now.", remedy="Try again in a moment."
                ) from None
            except (NestlingError, OSError, RuntimeError, MemoryError) as error:
                if awaited is version:
                    raise NotReady(f"version {version.name!r} cannot be loaded: {error}") from error
                await asyncio.sleep(0)  # the swap is called off; the served version is loaded again

    # -- loading and unloading ---------------------------------------------------------------------

    def _load_task(self, version: Version) -> asyncio.Task[EngineWorker]:
        # A task of its own: the request that asked may go away, others may be waiting for the same version.
        task = self._loads.get(version.name)
        if task is None:
            task = self._loads[version.name] = asyncio.create_task(self._load(version))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _load(self, version: Version) -> EngineWorker:
        try:
            async with self._load_lock:
                worker = self._workers.get(version.name)
                if worker is None or worker.failed:
                    await self._unload(version.name)
                    await self._make_room()
                    loaded = await asyncio.to_thread(self._load_engine, version)
                    engine, chooser = loaded if isinstance(loaded, tuple) else (loaded, None)
                    worker = EngineWorker(version, engine, self.max_queue, chooser)
                    self._workers[version.name] = worker
                    self._retired.discard(version.name)
                return worker
        finally:
            del self._loads[version.name]

    async def _make_room(self) -> None:
        while len(self._workers) >= self.max_loaded:
            coming = self._coming.name if self._coming else None  # loaded, and about to be served
            idle = [name for name in self._workers if not self._leases.get(name) and name != coming]
            others = [name for name in idle if self.serving is None or name != self.serving.name]
            if idle:
                await self._unload((others or idle)[0])
            else:
                self._released.clear()
                await self._released.wait()

    async def _unload(self, name: str) -> None:
        worker = self._workers.pop(name, None)
        if worker is not None:
            await worker.close()
            await asyncio.to_thread(_forget)

    # -- following the pointer ---------------------------------------------------------------------

    async def _watch(self) -> None:
        seen: object = self  # no stamp yet, not even that of a missing file
        retry_at = 0.0
        while True:
            stamp = self._pointer_stamp()
            if stamp != seen or (self.error and time.monotonic() >= retry_at):
                seen, retry_at = stamp, time.monotonic() + _RETRY_SECONDS
                await self._follow_pointer()
            await self._retire_idle()
            await asyncio.sleep(_POLL_SECONDS)

    def _pointer_stamp(self) -> tuple[int, int] | None:
        try:
            status = self.versions.pointer_path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    async def _follow_pointer(self) -> None:
        try:
            version = await asyncio.to_thread(self.versions.serving)
            if version is None:
                return
            if self.serving is None or version.name != self.serving.name:
                self._coming = version
                await self._load_task(version)
                log.info("serving %s", version.name)
                if self.serving is not None:
                    self._retired.add(self.serving.name)
                self._retired.discard(version.name)
            self.serving, self.error = version, None
        except Exception as error:  # whatever keeps the new version from loading, the old one must go on
            log.exception("cannot follow the serving pointer")
            self.error = str(error) or type(error).__name__
        finally:
            self._coming = None
            self._settled.set()
            self._released.set()

    async def _retire_idle(self) -> None:
        """Free versions that were served until a moment ago once their last answers have ended."""
        for name in [name for name in self._retired if not self._leases.get(name)]:
            async with self._load_lock:
                if name in self._retired and not self._leases.get(name):
                    self._retired.discard(name)
                    await self._unload(name)


def is_offered(version: Version) -> bool:
    """Whether people may ask for ``version`` by name."""
    card = version.card
    return card.state != "rejected" and card.kind != "reward_model" and not card.removed


def _forget() -> None:
    """Give freed weights back to the operating system."""
    gc.collect()
    give_memory_back()
