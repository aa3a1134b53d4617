"""Two contenders in turns: the machine's rate swings, so only neighbouring turns are compared."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nestling.compute.process import LIBRARY_SETTINGS, MALLOC_TUNABLES, SPINNING
from nestling.errors import BenchError

PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Contender:
    """Who takes turns: ``program`` is a file in ``peers``, or "ours"; ``setting`` its JSON file."""

    name: str
    program: str
    setting: Path
    python: Path = Path(sys.executable)

    @property
    def command(self) -> list[str]:
        what = ["-m", "nestling.bench.ours"] if self.program == "ours" else [str(PEERS / self.program)]
        return [str(self.python), *what, str(self.setting)]

    @property
    def environment(self) -> dict[str, str]:
        """Peers get our allocator's settings too, which serve them as well; ours gets what its command line sets."""
        return os.environ | (LIBRARY_SETTINGS | SPINNING if self.program == "ours" else {}) | {
            "GLIBC_TUNABLES": MALLOC_TUNABLES, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }  # fmt: skip


class Player:
    """A contender's process, idle between its turns."""

    def __init__(self, contender: Contender, log: Path) -> None:
        self.contender, self.log, self.peak = contender, log, 0
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                contender.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=contender.environment,
            )  # fmt: skip

    def __enter__(self) -> Player:
        try:
            self._line()
        except BaseException:  # nobody else would end it
            self._process.kill()
            self._process.wait()
            raise
        return self

    def turn(self) -> dict[str, float]:
        """Let it take one; returns what it says: ``seconds``, perhaps ``generating`` or ``decoding``."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the end of its turns
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _line(self) -> dict[str, float]:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            tail = self.log.read_text("utf-8", errors="replace").strip().splitlines()[-3:]
            raise BenchError(
                f"{self.contender.name} stopped: {' / '.join(tail)}", where=str(self.log),
                remedy="Run `make bench-peers` if a package is missing." if self.contender.program != "ours" else None,
            )  # fmt: skip
        told: dict[str, float] = json.loads(text)
        self.peak = max(self.peak, int(told["peak"]))
        return told


@dataclass(frozen=True)
class Duel:
    """One line of the table.

    Attributes:
        measure: what is compared, less is better: "seconds", or "decoding" (seconds without reading the prompt).
        least, aim: the ratio that is asked for, and the one hoped for; 0 where none is.
        tokens: tokens in a turn, for rates; 0 where a rate says nothing.
    """

    name: str
    ours: Contender
    peer: Contender
    measure: str = "seconds"
    least: float = 0.0
    aim: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a duel gave; times in seconds by round, peaks in bytes, the process with everything in it."""

    duel: Duel
    ours: list[dict[str, float]]
    peer: list[dict[str, float]]
    our_peak: int
    peer_peak: int

    @property
    def spread(self) -> tuple[float, float, float]:
        """Quartiles of the rounds' ratios, the peer's time over ours."""
        what = self.duel.measure
        return quartiles([p[what] / o[what] for o, p in zip(self.ours, self.peer, strict=True)])

    @property
    def ratio(self) -> float:
        """How many times as fast we are: the median of the rounds."""
        return self.spread[1]

    def as_json(self) -> dict[str, Any]:
        d = self.duel
        return {
            "name": d.name, "ours": d.ours.name, "peer": d.peer.name, "measure": d.measure, "least": d.least,
            "aim": d.aim, "tokens": d.tokens, "ratio": self.spread, "our_turns": self.ours, "peer_turns": self.peer,
            "our_peak": self.our_peak, "peer_peak": self.peer_peak,
        }  # fmt: skip


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def fight(duel: Duel, rounds: int, logs: Path, told: Callable[[str], object] = print) -> Outcome:
    """Both get warm for a turn; then they take ``rounds`` turns each, and who goes first changes every round."""
    logs.mkdir(parents=True, exist_ok=True)
    with Player(duel.ours, logs / "ours.log") as ours, Player(duel.peer, logs / "peer.log") as peer:
        for player in (ours, peer):
            player.turn()
        turns: Mapping[str, list[dict[str, float]]] = {"ours": [], "peer": []}
        for number in range(rounds):
            order = [("ours", ours), ("peer", peer)]
            for side, player in order if number % 2 == 0 else reversed(order):
                turns[side].append(player.turn())
            last = [turns[side][-1][duel.measure] for side in ("ours", "peer")]
            told(f"{duel.name}: {number + 1}/{rounds}  ours {last[0]:.2f} s, peer {last[1]:.2f} s")
        return Outcome(duel, turns["ours"], turns["peer"], ours.peak, peer.peak)
