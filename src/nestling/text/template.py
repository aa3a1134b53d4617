"""The model's own chat template in a sandbox: Jinja as Hugging Face's ``apply_chat_template`` sets it up."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nestling.errors import ConfigError, DataError, ModelError
from nestling.text.messages import Message

MAX_NAME_LENGTH = 40


class _Refusal(jinja2.TemplateError):
    """The template called ``raise_exception``: it has nothing to say for this conversation."""


class _GenerationBlock(Extension):
    """``{% generation %}`` marks the assistant's text for other tools; here it just renders its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration of this attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return caller()


def _raise_exception(message: str) -> None:
    raise _Refusal(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which a prompt is not.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _dict(*args: Any, **entries: Any) -> dict[Any, Any]:
    # Jinja would hand the template the class itself.
    return dict(*args, **entries)


@lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "dict": _dict}
    return environment.from_string(source)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja source, from a model folder or a GGUF file.
        where: the place it came from, for errors.

    Raises:
        ModelError: when the source is not valid Jinja.
    """

    def __init__(self, source: str, where: str = "chat template") -> None:
        self.source, self.where = source, where
        try:
            self._template = _compile(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template is not valid Jinja: {error.message}.",
                where=f"{where}, line {error.lineno}",
                remedy="Repair it, or use the template the model was published with.",
            ) from error

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool, special_tokens: Mapping[str, str]
    ) -> str:
        """The conversation as the model reads it.

        Args:
            messages: only role and content reach the template.
            add_generation_prompt: end with the header of an assistant turn.
            special_tokens: template variables such as ``bos_token``.

        Raises:
            DataError: the template refuses the conversation (``raise_exception``).
            ModelError: the template fails, or reaches for what the sandbox forbids.
        """
        turns = [{"role": message["role"], "content": message["content"]} for message in messages]
        try:
            return self._template.render(
                **special_tokens,
                messages=turns,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except _Refusal as error:
            raise DataError(
                f"the chat template refuses this conversation: {error.message}",
                where=self.where,
                remedy="Change the conversation to what this model accepts.",
            ) from error
        except Exception as error:
            # A template is foreign code: whatever it raises, from a sandbox violation to a division by zero, is the
            # template's fault. It becomes an error that says so; Ctrl-C and the like are no Exception and go on.
            raise ModelError(
                f"the chat template failed: {type(error).__name__}: {error}.",
                where=self.where,
                remedy="Use the template the model was published with.",
            ) from error


def with_assistant_name(template_source: str, name: str) -> str:
    """The template with its default system sentence replaced by "You are a helpful AI assistant named NAME."

    Many templates slip in a sentence that names another assistant when a conversation has no system turn. It
    is found by rendering a conversation without one and one with a known one. A template that has no such
    sentence, or composes it from parts, is returned unchanged.

    Raises:
        ConfigError: the name is empty, too long or holds other than letters, digits, spaces, "-" and ".".
        ModelError: the template is not valid Jinja.
    """
    sentence = f"You are a helpful AI assistant named {checked_name(name)}"
    default = _default_system_text(ChatTemplate(template_source))
    return template_source.replace(default, sentence) if default else template_source


def checked_name(name: str) -> str:
    # None of these characters can close a Jinja string or spell a control token.
    allowed = all(unicodedata.category(c)[0] in "LM" or c.isdecimal() or c in " -." for c in name)
    if not (allowed and name.strip() and len(name) <= MAX_NAME_LENGTH):
        raise ConfigError(
            f"the assistant's name {name!r} cannot be used.",
            where="name",
            remedy=f"Use 1 to {MAX_NAME_LENGTH} letters, digits, spaces, hyphens and dots.",
        )
    return name.strip()


def _default_system_text(template: ChatTemplate) -> str:
    """The system text the template adds of itself, or ""."""
    probe = "a-system-text-no-template-holds"
    user = Message(role="user", content="a-user-text-no-template-holds")
    variables = {"bos_token": "", "eos_token": ""}

    def rendered(*messages: Message) -> str:
        return template.render(messages, add_generation_prompt=False, special_tokens=variables)

    try:
        bare = rendered(user)
        before, found, after = rendered(Message(role="system", content=probe), user).partition(probe)
    except (DataError, ModelError):
        return ""  # the template knows no system turns
    middle = bare[len(before) : len(bare) - len(after)]
    return middle.strip() if found and bare == before + middle + after else ""
