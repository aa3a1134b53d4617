"""Every error a user can cause: what was wrong, where, and what to do about it."""

from __future__ import annotations


class NestlingError(Exception):
    """A problem the user can mend.

    Args:
        what: one plain sentence that names the bad value.
        where: the place, such as ``data.jsonl:12`` or ``recipe.yaml: ppo.kl_coef``.
        remedy: one plain sentence that says what to do.
    """

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f" {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{remedy}"


class ConfigError(NestlingError):
    """An option, recipe key or ``--set`` value that cannot be used."""


class DataError(NestlingError):
    """A conversation, ranking or prompt file that cannot be used."""


class ModelError(NestlingError):
    """Model weights, tokenizer or template that cannot be loaded or saved."""


class WorkspaceError(NestlingError):
    """A folder, lock, version or pointer that is missing, taken or damaged."""


class TrainingStopped(NestlingError):
    """Training stopped itself (NaN, collapse); a checkpoint was kept."""


class RequestError(NestlingError):
    """A generation request that cannot be served (context overflow, bad sampling value)."""


class QueueFull(NestlingError):
    """The server's bounded queue is full; the client should retry later."""


class BenchError(NestlingError):
    """A contender of a benchmark did not start or did not finish its turn."""


class EndpointError(NestlingError):
    """An OpenAI-compatible endpoint refused, failed or could not be reached."""
