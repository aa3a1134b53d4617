"""People's judgments: recorded as they come, and turned into datasets."""

from __future__ import annotations

from nestling.feedback.export import export, preference_rows, ranking_rows, scalar_rows
from nestling.feedback.recorder import Recorder, UnknownAnswer, new_generation_id

__all__ = [
    "Recorder",
    "UnknownAnswer",
    "export",
    "new_generation_id",
    "preference_rows",
    "ranking_rows",
    "scalar_rows",
]
