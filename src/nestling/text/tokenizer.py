"""Text to token ids and back, with the model's own chat template."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from nestling.errors import DataError, ModelError
from nestling.text.files import optional_json
from nestling.text.literal import LiteralEncoder, any_of
from nestling.text.messages import ROLES, Message, require_text
from nestling.text.template import ChatTemplate, with_assistant_name
from nestling.workspace import atomic

_PROBE = "an-answer-no-template-holds"
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    """A ``tokenizers.Tokenizer`` that speaks the model's chat format.

    Control tokens are the added tokens marked special and those named here. Text never becomes one: not in
    ``encode``, and in ``render`` only where the template itself writes them.

    Args:
        backend: the tokenizer; it belongs to this object from now on.
        template: Jinja source of the chat template; without one only ``encode`` and ``decode`` work.
        bos, eos, unk, pad: spellings of the named tokens. ``pad`` is a wish: see ``pad_id``.
        eos_ids: further ids that end an answer, such as those of ``generation_config.json``.
        where: the place it all came from, for errors.

    Attributes:
        eos_ids: every id that ends an answer: the named eos, ``eos_ids``, and the control token with which
            the template closes an assistant turn.
        eos_id: that closing token if the template has one, else the named eos.
        pad_id: never in ``eos_ids``.
        control_ids: ids of the control tokens.
        vocab_size: one more than the highest id.
        decoder_spec: the decoder as ``tokenizer.json`` describes it.

    Raises:
        ModelError: there is no end token, no token left for padding, or the parts do not fit together.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        template: str | None = None,
        *,
        bos: str | None = None,
        eos: str | None = None,
        unk: str | None = None,
        pad: str | None = None,
        eos_ids: Iterable[int] = (),
        where: str = "tokenizer",
    ) -> None:
        self.backend, self.where = backend, where
        backend.no_truncation()
        backend.no_padding()
        named = zip(_NAMES, (bos, eos, unk, pad), strict=True)
        # A name for a token that the vocabulary lacks would add a row to the model; better without it.
        self._named = {key: name for key, name in named if name and backend.token_to_id(name) is not None}
        ends = [name for name in map(backend.id_to_token, eos_ids) if name is not None]
        self._control = _make_special(backend, {*self._named.values(), *ends})
        self.control_ids = frozenset(self._control.values())
        self.vocab_size = max(backend.get_vocab().values()) + 1
        spec = json.loads(backend.to_str())
        self.decoder_spec: dict[str, Any] | None = spec["decoder"]
        self._literal = LiteralEncoder(spec, self._control, where)
        self.template = None if template is None else ChatTemplate(template, where)

        closing = self._closing_token()
        candidates = [closing, self._named.get("eos_token"), *ends]
        answer_ends = list(dict.fromkeys(name for name in candidates if name is not None))
        if not answer_ends:
            raise ModelError("no token ends an answer.", where=where, remedy="Name an eos_token.")
        self.eos_id = self._control[answer_ends[0]]
        self.eos_ids = frozenset(self._control[name] for name in answer_ends)
        self._end = re.compile(any_of(self._literal.private[name] for name in answer_ends))
        self._named["pad_token"] = self._padding_token()
        self.pad_id = self._control[self._named["pad_token"]]

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Read a Hugging Face folder.

        Of ``tokenizer.json``, ``tokenizer_config.json``, ``chat_template.jinja`` and
        ``generation_config.json`` only the first must exist.

        Raises:
            ModelError: naming the file that is missing or damaged.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                "there is no tokenizer.json.",
                where=str(folder),
                remedy="Make one with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...).",
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(
                f"this tokenizer cannot be read: {error}.", where=str(path), remedy="Fetch the file again."
            ) from error
        config = optional_json(folder / "tokenizer_config.json")
        names = {key.removesuffix("_token"): _spelling(config.get(key)) for key in _NAMES}
        eos_ids = _end_ids(folder / "generation_config.json")
        return cls(backend, _template_source(folder, config), eos_ids=eos_ids, where=str(folder), **names)

    def save(self, folder: Path | str) -> None:
        """Write the files that ``load`` and ``transformers.AutoTokenizer`` read into ``folder``.

        ``generation_config.json`` is among them: it is where the end tokens beside the named one are kept.
        """
        folder = Path(folder)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **self._named,
        }
        if self.template is not None:
            config["chat_template"] = self.template.source
        # The main end token first: readers that know only one take that.
        ends = sorted(self.eos_ids, key=lambda token_id: (token_id != self.eos_id, token_id))
        generation: dict[str, Any] = {"eos_token_id": ends, "pad_token_id": self.pad_id}
        if "bos_token" in self._named:
            generation["bos_token_id"] = self._control[self._named["bos_token"]]
        atomic.write_text(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        atomic.write_json(folder / "tokenizer_config.json", config)
        atomic.write_json(folder / "generation_config.json", generation)
        (folder / "chat_template.jinja").unlink(missing_ok=True)  # an older one would win over ours

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; nothing is added, and a control token spelled in it stays text."""
        return self._literal.encode(text)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ``ids``; bytes that are not UTF-8 come out as U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def render_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the conversation up to where the assistant's next answer begins.

        They equal those of ``transformers``' ``apply_chat_template(add_generation_prompt=True)``, except that
        a control token spelled in a message stays text.

        Raises:
            DataError: a message is not text, its role is unknown, or the template refuses the conversation.
            ModelError: there is no chat template, or it fails.
        """
        return self.encode(self.render(messages, add_generation_prompt=True))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The rendered conversation as text for ``encode``: the template's control tokens privately spelled.

        Raises:
            as ``render_prompt``.
        """
        if self.template is None:
            raise ModelError(
                "this tokenizer has no chat template.",
                where=self.where,
                remedy="Use an instruction-tuned model, or put its chat_template.jinja into the folder.",
            )
        text = self.template.render(
            [self._marked(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            special_tokens=self._named,
        )
        text = self._literal.settle(text)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ModelError(
                f"the chat template writes no Unicode text: {error}.",
                where=self.where,
                remedy="Give the model another chat_template in tokenizer_config.json.",
            ) from error
        return text

    def end_of_turn(self, rendered: str, start: int) -> int | None:
        """Where, in rendered text, the first end token after ``start`` ends; None when there is none."""
        found = self._end.search(rendered, start)
        return found.end() if found else None

    def encode_answer(self, text: str) -> list[int]:
        """Ids of an answer's text as it follows a prompt, without its end token.

        After a header that ends in a line break SentencePiece puts no space before the first word; where the template
        writes one itself, it belongs to the answer.
        """
        header, ids, lead = self._before_answers
        lead = "" if text[:1].isspace() else lead  # as sampled, where decoding keeps the space
        whole = self.encode(header + lead + text) if text else ids
        if whole[: len(ids)] == ids:
            return whole[len(ids) :]
        return self.encode_continuation(lead + text)  # it begins with what would merge with the header

    @cached_property
    def _before_answers(self) -> tuple[str, list[int], str]:
        """A prompt as the template renders it, its ids, and the white space that it writes before an answer."""
        turns = [Message(role="user", content="x"), Message(role="assistant", content=_PROBE)]
        try:
            header = self.render(turns[:1], add_generation_prompt=True)
            before, found, _ = self.render(turns, add_generation_prompt=False).partition(_PROBE)
        except (DataError, ModelError):
            return "", [], ""  # it wants other conversations than this
        lead = before.removeprefix(header) if found and before.startswith(header) else ""
        return header, self.encode(header), lead if lead.isspace() else ""

    def encode_continuation(self, rendered: str) -> list[int]:
        """Ids of rendered text that continues other text, so without SentencePiece's space at a beginning."""
        return self.encode(self._literal.private[self._named["pad_token"]] + rendered)[1:]

    def with_assistant_name(self, name: str) -> Tokenizer:
        """This tokenizer with a chat template whose default system sentence names ``name``.

        Raises:
            ConfigError: the name cannot be used.
        """
        other = copy.copy(self)
        if self.template is not None:
            other.template = ChatTemplate(with_assistant_name(self.template.source, name), self.where)
        return other

    def _marked(self, message: Message) -> Message:
        """The message with a mark inside every control token it spells, so that it is not one."""
        role, content = message["role"], require_text(message["content"], "content", "message")
        if role not in ROLES:
            raise DataError(
                f"unknown role {role!r}.", where="message", remedy=f"Use one of {', '.join(ROLES)}."
            )
        return Message(role=role, content=self._literal.mark(content))

    def _closing_token(self) -> str | None:
        """The control token the template writes right after an assistant's content."""
        if self.template is None:
            return None
        turns = [Message(role="user", content="x"), Message(role="assistant", content=_PROBE)]
        try:
            text = self.render(turns, add_generation_prompt=False)
        except DataError:
            return None  # it wants other conversations than this
        by_private = {private: name for name, private in self._literal.private.items()}
        found = re.search(rf"{_PROBE}\s*({any_of(by_private)})", text)
        return by_private[found[1]] if found else None

    def _padding_token(self) -> str:
        """The source's own choice unless it ends answers, else the control token least likely to be read.

        A model that is trained with its end token as padding never learns to stop.
        """
        template = self.template.source if self.template else ""
        in_use = {name for key, name in self._named.items() if key != "pad_token"}
        free = [name for name, token_id in self._control.items() if token_id not in self.eos_ids]
        unread = [name for name in free if name not in in_use and name not in template]
        wishes = [
            *(name for name in free if name == self._named.get("pad_token")),
            *(name for name in unread if "pad" in name.lower()),
            *unread,
            *(name for key in ("unk_token", "bos_token") for name in free if name == self._named.get(key)),
        ]
        if not wishes:
            raise ModelError(
                "every control token ends an answer: none is left for padding.",
                where=self.where,
                remedy="Add a pad token to the tokenizer.",
            )
        return wishes[0]


def _make_special(backend: tokenizers.Tokenizer, names: Iterable[str]) -> dict[str, int]:
    """Mark ``names`` special as well; all special tokens, spelling -> id, by id."""
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for name in names:
        token = added.get(name, tokenizers.AddedToken(name, normalized=False))
        if not token.special:
            token.special = True
            backend.add_special_tokens([token])
    tokens = sorted(backend.get_added_tokens_decoder().items())
    return {token.content: token_id for token_id, token in tokens if token.special}


def _end_ids(path: Path) -> list[int]:
    value = optional_json(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise ModelError(
            f"'eos_token_id' must be an id or a list of ids, not {value!r}.",
            where=str(path),
            remedy="Get the model's files again.",
        )
    return ids


def _spelling(value: Any) -> str | None:
    """A named token in ``tokenizer_config.json`` is text, or an object with its ``content``."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The file wins over the configuration; of several named templates, the one called "default"."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(
                f"this is not UTF-8: {error}.", where=str(path), remedy="Get the file again."
            ) from error
    source = config.get("chat_template")
    if isinstance(source, list):
        source = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = source.get("default")
    if source is not None and not isinstance(source, str):
        raise ModelError(
            "'chat_template' must be text.",
            where=str(folder / "tokenizer_config.json"),
            remedy="Get tokenizer_config.json again.",
        )
    return source
