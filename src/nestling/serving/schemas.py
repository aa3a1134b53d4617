"""What requests may say. Fields we cannot honour are refused unless they ask for what happens anyway."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from fastapi import Body
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from nestling.feedback.people import Person
from nestling.feedback.recorder import Thumb
from nestling.generation.protocol import Sampling
from nestling.serving.answers import Question
from nestling.serving.pool import CURRENT
from nestling.text.messages import Message, Role, joined_turns, validate_messages

_MAX_STOPS = 16
_INT64 = 2**63

# OpenAI's fields that would change the answer, with the values under which they would not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "web_search_options": (None,),
}


def _encodable(text: str) -> str:
    """JSON can spell half of a surrogate pair, which no database stores."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Name = Annotated[Text, Field(min_length=1, max_length=64)]
Number = Annotated[int, Field(ge=1, lt=2**31)]
"""Of a row: what a database has room for."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Turn(_Strict):
    """A turn. OpenAI's clients send our own messages back with the fields that we, or they, left empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    tool_calls: list[Any] | None = Field(None, max_length=0)

    @field_validator("content", mode="before")
    @classmethod
    def _text_only(cls, value: Any) -> Any:
        if not isinstance(value, str | list):
            raise ValueError("write a text, or a list of text parts")
        for part in value if isinstance(value, list) else []:
            if isinstance(part, dict) and part.get("type", "text") != "text":
                raise ValueError(
                    f"this model reads text only; leave the part of type {part['type']!r:.40} out"
                )
        return value


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class SamplingFields(_Strict):
    """OpenAI's sampling fields, and top_k, min_p and repetition_penalty as local servers name them."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > _MAX_STOPS or not all(stops):
            raise ValueError(f"use at most {_MAX_STOPS} non-empty texts")
        return value

    def sampling(self, defaults: Sampling) -> Sampling:
        """These fields over ``defaults``. Without a seed one is drawn: every answer can be given again."""
        named = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        limit = self.max_completion_tokens or self.max_tokens or defaults.max_tokens
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        values = {name: value for name in named if (value := getattr(self, name)) is not None}
        seed = secrets.randbits(31) if self.seed is None else self.seed
        return Sampling(
            **{**{name: getattr(defaults, name) for name in named}, **values},
            max_tokens=limit,
            stop=stops,
            seed=seed,
        )


class Prompt(SamplingFields):
    """Fields that ``/v1/chat/completions`` and ``/api/compare`` share.

    ``user`` names the client (a browser, an application), ``metadata.conversation_id`` the conversation;
    ``store`` False asks that nothing be written down.
    """

    messages: list[Turn] = Field(min_length=1)
    user: Name | None = None
    metadata: dict[str, Text] | None = None
    store: bool | None = None

    def question(
        self, model: str, defaults: Sampling, person: Person | None, blind: bool = False
    ) -> Question:
        """The question of ``person`` to the version called ``model``.

        Clients write turns as they come: what one side says in a row is one turn, and the assistant may greet first.

        Raises:
            DataError: the turns do not make a conversation that awaits an answer.
        """
        turns = joined_turns([Message(role=_role(turn), content=_text(turn)) for turn in self.messages])
        conversation = (self.metadata or {}).get("conversation_id")
        return Question(
            messages=validate_messages(turns, "messages", greeting=True),
            sampling=self.sampling(defaults),
            model=model,
            fit_context=self.max_completion_tokens is None and self.max_tokens is None,
            client=person,
            blind=blind,
            conversation_id=conversation[:64] if conversation else None,
            record=self.store is not False,
        )

    @field_validator("messages")
    @classmethod
    def _awaits_an_answer(cls, turns: list[Turn]) -> list[Turn]:
        if turns[-1].role == "assistant":
            raise ValueError("the last turn must be the user's")
        return turns


class ChatRequest(Prompt):
    """``POST /v1/chat/completions``."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    web_search_options: Any = None
    # These change nothing about the answer.
    parallel_tool_calls: Any = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    verbosity: Any = None

    @field_validator(*_NEUTRAL)
    @classmethod
    def _only_neutral(cls, value: Any, info: ValidationInfo) -> Any:
        neutral = _NEUTRAL[info.field_name or ""]
        if not any(value == fine and isinstance(value, bool) == isinstance(fine, bool) for fine in neutral):
            raise ValueError(f"{value!r} is not supported; leave the field out")
        return value


class CompareRequest(Prompt):
    """``POST /api/compare``: an answer of each of ``models``, of which one may come several times."""

    models: list[str] = Field(default=[CURRENT, CURRENT], min_length=2, max_length=6)


class ThumbRequest(_Strict):
    """A thumb on one answer; "none" takes it back."""

    kind: Literal["thumb"]
    generation_id: Name
    value: Thumb
    reason: Text = Field("", max_length=4000)
    user: Name | None = None


class VoteRequest(_Strict):
    """Which of two answers to one prompt was better."""

    kind: Literal["vote"]
    left: Name
    right: Name
    winner: Literal["left", "right", "tie", "both_bad"]
    reason: Text = Field("", max_length=4000)
    user: Name | None = None


class RankingRequest(_Strict):
    """The order of several answers to one prompt: ``answers`` as they were shown, ``ranks`` from 1, the best.

    ``all_bad`` says that none of them is good, whatever their order.
    """

    kind: Literal["ranking"]
    answers: list[Name] = Field(min_length=2, max_length=16)
    ranks: list[Annotated[int, Field(ge=1, le=16)]]
    all_bad: bool = False
    reason: Text = Field("", max_length=4000)
    user: Name | None = None
    desk_item: Number | None = None


class ScoreRequest(_Strict):
    """How good one answer is by itself, from 1 (bad) to 5."""

    kind: Literal["score"]
    generation_id: Name
    value: int = Field(ge=1, le=5)
    reason: Text = Field("", max_length=4000)
    user: Name | None = None
    desk_item: Number | None = None


class SkipRequest(_Strict):
    """Why an item of the desk is passed by."""

    reason: Text = Field(min_length=1, max_length=400)
    user: Name | None = None


class RewriteRequest(_Strict):
    """The answer as it should have been, in a person's words."""

    kind: Literal["rewrite"]
    generation_id: Name
    text: Text = Field(min_length=1, max_length=20_000)
    reason: Text = Field("", max_length=4000)
    user: Name | None = None


Judged = ThumbRequest | VoteRequest | RankingRequest | ScoreRequest | RewriteRequest
JudgmentRequest = Annotated[Judged, Body(discriminator="kind")]


def _role(turn: Turn) -> Role:
    return "system" if turn.role == "developer" else turn.role  # OpenAI's newer name


def _text(turn: Turn) -> str:
    if isinstance(turn.content, str):
        return turn.content
    return "".join(part.text for part in turn.content)
