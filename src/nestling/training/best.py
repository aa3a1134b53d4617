"""Keeping the weights of the lowest validation loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nestling.workspace import atomic


class BestWeights:
    """Remembers the best validation so far and the weights it was measured on, one file a record.

    The file carries its step in its name: after a kill, the resumed run points at the file its state knows and writes
    later ones again with the same content.
    """

    def __init__(self, folder: Path, parameters: dict[str, Tensor]) -> None:
        self.folder, self.parameters = folder, parameters
        self.loss, self.step = math.inf, -1
        self.history: list[tuple[int, float]] = []
        self._saved = -1  # the record that the last checkpoint knows

    def record(self, step: int, loss: float) -> None:
        """Note a validation; keep the weights when it is the best."""
        self.history.append((step, loss))
        if loss < self.loss:
            self.loss, self.step = loss, step
            tensors = {name: p.detach().contiguous() for name, p in self.parameters.items()}
            with atomic.new_file(self._file(step)) as temporary:
                save_file(tensors, temporary)
            self._tidy()

    def restore(self, share: float = 1.0) -> None:
        """Put the best weights back, or weights ``share`` of the way to them from those of the first record."""
        if self.step < 0:
            return
        best = load_file(self._file(self.step))
        first = load_file(self._file(self._first)) if share < 1 else best
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.lerp(first[name].float(), best[name].float(), share))

    @property
    def _first(self) -> int:
        return self.history[0][0]

    @property
    def still_falling(self) -> bool:
        """True when the last validation was the best: more training might have helped."""
        return bool(self.history) and self.history[-1][0] == self.step

    def state(self) -> dict[str, Any]:
        self._tidy()
        self._saved = self.step
        return {"loss": self.loss if self.step >= 0 else None, "step": self.step, "history": self.history}

    def load_state(self, state: dict[str, Any]) -> None:
        self.step, self.history = state["step"], [(s, v) for s, v in state["history"]]
        self._saved = self.step
        self.loss = math.inf if state["loss"] is None else state["loss"]

    def _tidy(self) -> None:
        """Drop records that nobody needs: a checkpoint stands until the next is whole, and points at its own."""
        needed = {self._file(step) for step in (self.step, self._saved, *(s for s, _ in self.history[:1]))}
        for file in self.folder.glob("best-*.safetensors"):
            if file not in needed:
                file.unlink()

    def _file(self, step: int) -> Path:
        return self.folder / f"best-{step:06d}.safetensors"
