"""Resumable state on disk: all tensors of the optimizer and a small JSON of counters, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from nestling.workspace import atomic


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write ``folder/checkpoint-<step>`` and then delete the older ones."""
    final = folder / f"checkpoint-{step:06d}"
    if final.exists():
        return
    with atomic.new_folder(final) as temporary:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps({"step": step, "stage": state}))
    for older in checkpoints(folder)[:-1]:
        shutil.rmtree(older)


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint's step, tensors and state, or None when there is none."""
    found = checkpoints(folder)
    if not found:
        return None
    saved = json.loads((found[-1] / "state.json").read_text())
    return saved["step"], load_file(found[-1] / "state.safetensors"), saved["stage"]


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("checkpoint-*")) if folder.exists() else []
