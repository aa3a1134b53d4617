"""People's judgments: recorded as they come, and turned into datasets."""

from __future__ import annotations

from nestling.feedback.export import demonstration_rows, export, preference_rows, ranking_rows, scalar_rows
from nestling.feedback.recorder import Recorder, UnknownAnswer, new_generation_id

__all__ = [
    "Recorder",
    "UnknownAnswer",
    "demonstration_rows",
    "export",
    "new_generation_id",
    "preference_rows",
    "ranking_rows",
    "scalar_rows",
]
