"""How well a model still predicts plain prose: what alignment most quietly spoils."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nestling.data.curriculum.schema import CONTENT
from nestling.errors import DataError
from nestling.evaluation.intervals import Resampled, resample_ratio
from nestling.model.hf_folder import LoadedModel
from nestling.model.layout import PackedLayout
from nestling.model.vocabulary import token_logprobs

PROSE = CONTENT / "prose.yaml"


class Passage(BaseModel):
    """A piece of prose with where it is from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    text: str = Field(min_length=1)
    source: str = ""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    about: str = ""
    gate: list[Passage]
    test: list[Passage]


class PassageLoss(BaseModel):
    """Negative log-likelihood of a passage: ``nll`` nats, summed over its ``tokens`` predicted tokens."""

    model_config = ConfigDict(frozen=True)

    passage: str
    nll: float
    tokens: int


@cache
def load_passages(split: str, path: Path = PROSE) -> tuple[Passage, ...]:
    """The passages of a split.

    Raises:
        DataError: the file is missing or not of this shape.
    """
    try:
        file = _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError("there is no prose to measure perplexity on.", where=str(path)) from None
    except (yaml.YAMLError, ValidationError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path)) from error
    return tuple({"gate": file.gate, "test": file.test}[split])


@torch.inference_mode()
def passage_losses(model: LoadedModel, passages: Sequence[Passage]) -> list[PassageLoss]:
    """Loss of each passage as plain text, without a chat template; its first token is given, not predicted.

    A passage longer than the context is read in windows of the context's length.
    """
    decoder, losses = model.decoder, []
    for passage in passages:
        ids = torch.tensor(model.tokenizer.encode(passage.text), device=decoder.device)
        nll, tokens = 0.0, 0
        for window in ids.split(model.context_length):
            layout = PackedLayout.from_lengths([len(window)]).to(decoder.device)
            hidden = decoder(window, layout)[:-1]
            logprobs = token_logprobs(hidden, decoder.lm_head.weight, window[1:])
            nll, tokens = nll - logprobs.cpu().double().sum().item(), tokens + len(logprobs)
        if not tokens:
            raise DataError("a passage needs at least two tokens.", where=passage.id)
        losses.append(PassageLoss(passage=passage.id, nll=nll, tokens=tokens))
    return losses


def perplexity(losses: Sequence[PassageLoss]) -> float:
    """exp of the mean loss a token."""
    return math.exp(sum(loss.nll for loss in losses) / sum(loss.tokens for loss in losses))


def log_ratio(losses: Sequence[PassageLoss], reference: Sequence[PassageLoss]) -> Resampled:
    """Log of perplexity over the reference's perplexity, resampled by passage; above 0 is worse.

    Raises:
        DataError: not the same passages, or tokenizers that split them differently.
    """
    if [(a.passage, a.tokens) for a in losses] != [(b.passage, b.tokens) for b in reference]:
        raise DataError(
            "the perplexities are not of the same passages in the same tokens.",
            where="perplexity",
            remedy="Compare versions that share a tokenizer, evaluated on the same split.",
        )
    worse = [a.nll - b.nll for a, b in zip(losses, reference, strict=True)]
    return resample_ratio(worse, [loss.tokens for loss in losses])
