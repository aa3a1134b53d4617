"""Training samples: which tokens of a conversation the model learns to write.

The loss mask is true by construction: a prompt is rendered exactly as it will be at inference, and what the
template adds for the assistant's turn, up to and including its end token, is what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nestling.errors import DataError
from nestling.text.detokenizer import StreamDecoder
from nestling.text.messages import Message
from nestling.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenSample:
    """``loss_mask[i]`` says whether the model is trained to predict ``ids[i]`` from the ids before it."""

    ids: list[int]
    loss_mask: list[bool]


@dataclass(frozen=True)
class _Turn:
    """One assistant turn, rendered: the prompt before it and what the template adds for it."""

    prompt: str
    completion: str


def training_samples(tokenizer: Tokenizer, messages: Sequence[Message], where: str) -> list[TokenSample]:
    """The samples of one conversation; what follows its last assistant turn is left out.

    One sample for the whole conversation when every turn's prompt and answer, as text and as tokens, is the
    beginning of the next one's. Otherwise one sample for each assistant turn: some templates rewrite earlier
    turns (Qwen3 drops their reasoning), and some answers begin with characters that merge with the header's
    last token, which at inference they never can.

    Raises:
        DataError: naming ``where``: there is no assistant turn, or the template renders one otherwise than
            its own prompt announces it, or gives it no end token.
        ModelError: there is no chat template, or it fails.
    """
    turns = [
        _rendered_turn(tokenizer, messages[: position + 1], f"{where}, turn {position + 1}")
        for position, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    if not turns:
        raise DataError(
            "no assistant turn to train on.", where=where, remedy="Add an answer, or drop the row."
        )
    chain = _chained(tokenizer, turns)
    if chain is not None:
        return [chain]
    return [_separate(tokenizer, turn, where) for turn in turns]


def describe_tokens(tokenizer: Tokenizer, sample: TokenSample) -> list[tuple[str, bool]]:
    """Each token's text and whether it is trained, for people to read.

    A character spread over several tokens is shown at the last of them, so that the texts put together are
    the sample's text, control tokens included.
    """
    decoder = StreamDecoder(tokenizer, skip_special=False)
    texts = [decoder.push(token_id) for token_id in sample.ids]
    if texts:
        texts[-1] += decoder.flush()
    return list(zip(texts, sample.loss_mask, strict=True))


def _rendered_turn(tokenizer: Tokenizer, messages: Sequence[Message], where: str) -> _Turn:
    prompt = tokenizer.render(messages[:-1], add_generation_prompt=True)
    whole = tokenizer.render(messages, add_generation_prompt=False)
    if not whole.startswith(prompt):
        raise DataError(
            "the chat template renders this answer otherwise than its generation prompt announces it.",
            where=where,
            remedy="Write the answer in the form this model's template expects.",
        )
    end = tokenizer.end_of_turn(whole, len(prompt))
    if end is None:
        raise DataError(
            "the chat template closes this answer with no end token: the model could not learn to stop.",
            where=where,
            remedy="Use a chat template that closes assistant turns.",
        )
    return _Turn(prompt, whole[len(prompt) : end])


def _chained(tokenizer: Tokenizer, turns: Sequence[_Turn]) -> TokenSample | None:
    """The whole conversation as one sample, or None when some turn is not the beginning of what follows."""
    whole = turns[-1].prompt + turns[-1].completion
    ids = tokenizer.encode(whole)
    mask = [False] * len(ids)
    for turn in turns:
        through = turn.prompt + turn.completion
        before, after = tokenizer.encode(turn.prompt), tokenizer.encode(through)
        if not whole.startswith(through) or ids[: len(after)] != after or after[: len(before)] != before:
            return None
        mask[len(before) : len(after)] = [True] * (len(after) - len(before))
    return TokenSample(ids, mask)


def _separate(tokenizer: Tokenizer, turn: _Turn, where: str) -> TokenSample:
    """One turn as at inference: the prompt's own tokens, then the answer's."""
    prompt = tokenizer.encode(turn.prompt)
    whole = tokenizer.encode(turn.prompt + turn.completion)
    if whole[: len(prompt)] == prompt:
        completion = whole[len(prompt) :]
    else:
        completion = tokenizer.encode_continuation(turn.completion)
        if tokenizer.decode(prompt + completion, skip_special=False) != tokenizer.decode(
            whole, skip_special=False
        ):
            raise DataError(
                "the beginning of an answer cannot be told from its prompt in this model's tokens.",
                where=where,
                remedy="Begin the answer with a letter.",
            )
    return TokenSample(prompt + completion, [False] * len(prompt) + [True] * len(completion))
