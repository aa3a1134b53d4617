"""Stop strings in streamed text."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Passes text through until a stop string appears; what might become one is held back.

    The stop string itself and everything after it are dropped. ``hit`` tells that one was found.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.hit = False
        self._held = ""

    def push(self, text: str) -> str:
        """Add text; returns what may be shown now."""
        if self.hit or not self.stops:
            return "" if self.hit else text
        self._held += text
        found = [at for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max(self._overlap(stop) for stop in self.stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """The text held back, once no more will come."""
        shown, self._held = self._held, ""
        return "" if self.hit else shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest proper prefix of ``stop`` that ends the held text."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
