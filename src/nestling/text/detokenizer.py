"""Token by token to text, for streaming: only whole characters come out, at constant cost a token."""

from __future__ import annotations

import codecs
from typing import Any, Protocol

from nestling.text.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes one answer as it is generated.

    The texts of all ``push`` calls and of one ``flush``, put together, equal ``tokenizer.decode`` of all ids.
    What a later token could still change is held back: an unfinished character, and with SentencePiece's
    byte tokens (``<0xE4>``) the whole run of them, since one wrong byte spoils the run.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._skipped = tokenizer.control_ids if skip_special else frozenset[int]()
        spec = tokenizer.decoder_spec
        self._decoder: _Decoder
        if spec is not None and spec["type"] == "ByteLevel":
            self._decoder = _Bytes(tokenizer)
        else:
            self._decoder = _Pieces(tokenizer, hold_all=not _is_piecewise(spec))

    def push(self, token_id: int) -> str:
        """The text that became certain with this token."""
        return "" if token_id in self._skipped else self._decoder.push(token_id)

    def flush(self) -> str:
        """The text held back at the end; an unfinished character comes out as U+FFFD."""
        return self._decoder.flush()


class _Decoder(Protocol):
    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


def _byte_alphabet() -> dict[str, int]:
    """The characters GPT-2's byte-level tokens are written in -> byte.

    Printable Latin-1 stands for itself; the other bytes, in order, for the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


class _Bytes:
    """Byte-level tokens: an incremental UTF-8 decoder over their bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token = tokenizer.backend.id_to_token
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        token = self._token(token_id) or ""
        try:
            raw = bytes([_BYTE_OF[character] for character in token])
        except KeyError:  # an added token with other characters stands for its own text
            raw = token.encode()
        return self._utf8.decode(raw)

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Pieces:
    """Tokens that are pieces of text: held tokens are decoded after the last one released.

    That last token keeps the decoder from treating them as the beginning of a text.
    """

    def __init__(self, tokenizer: Tokenizer, hold_all: bool) -> None:
        self._tokenizer, self._hold_all = tokenizer, hold_all
        self._last: list[int] = []
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        token = self._tokenizer.backend.id_to_token(token_id)
        if token is None:
            return ""
        self._held.append(token_id)
        is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        return "" if is_byte or self._hold_all else self.flush()

    def flush(self) -> str:
        if not self._held:
            return ""
        decode = self._tokenizer.decode
        text = decode(self._last + self._held, skip_special=False)[
            len(decode(self._last, skip_special=False)) :
        ]
        self._last, self._held = self._held[-1:], []
        return text


def _is_piecewise(spec: dict[str, Any] | None) -> bool:
    """Whether, byte runs aside, the text of a token that is not the first depends on that token alone."""
    if spec is None:
        return True
    steps = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    fused = False
    for step in steps:
        strips_one = step["type"] == "Strip" and step["start"] <= 1 and step["stop"] == 0
        if not strips_one and (fused or step["type"] not in ("Replace", "ByteFallback", "Metaspace", "Fuse")):
            return False
        fused = fused or step["type"] == "Fuse"
    return True
