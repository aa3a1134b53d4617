"""Makes every step of a ``transformers`` or TRL trainer a turn."""

from __future__ import annotations

from transformers import TrainerCallback
from turns import Turns


class Paced(TrainerCallback):
    """Add it to a trainer's callbacks; training ends when there are no more turns."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_begin(self, args, state, control, **kwargs):
        self.turns.wait(ready=True)

    def on_step_end(self, args, state, control, **kwargs):
        seconds = self.turns.seconds()
        self.between(state.global_step)
        if not self.turns.wait(seconds=seconds):
            raise SystemExit

    def between(self, step: int) -> None:
        """What is to be done after a turn, while the clock stands still."""
