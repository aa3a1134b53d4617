"""Verdicts on text: refused? loops? constraint met? number right? Pure functions, no torch."""

from __future__ import annotations

from nestling.checks.registry import HELD_OUT, is_held_out, judge, names, validate
from nestling.checks.verdict import Answer, Verdict

__all__ = ["HELD_OUT", "Answer", "Verdict", "is_held_out", "judge", "names", "validate"]
