"""Tokenizers between GGUF metadata and the ``tokenizers`` library, both ways.

GGUF stores the vocabulary and merges but only names how text is cut into words before merging (``pre``). The
patterns behind those names come from the ``tokenizer.json`` of the models the names stand for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from nestling.errors import ModelError
from nestling.model.gguf_header import READ_AGAIN
from nestling.text.tokenizer import Tokenizer

KEY = "tokenizer.ggml."
SPACE = "▁"  # SentencePiece's visible space
BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))

DIGIT = r"\p{N}"
WORDS_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (  # OpenAI's cl100k pattern; models differ in how many digits make a word
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS_LLAMA3 = _CL100K.replace("DIGITS", r"\p{N}{1,3}")
WORDS_QWEN2 = _CL100K.replace("DIGITS", r"\p{N}")
WORDS_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What llama.cpp does for files whose maker did not know the pre-tokenizer.
WORDS_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", WORDS_GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True)
class PreTokenizer:
    """How text becomes words: each pattern in turn cuts the pieces the one before left.

    ``whole_words``: a word that is in the vocabulary is taken as it is, whatever the merges say.
    ``adds_bos``: where the file does not say. ``normalizes``: to NFC first, which llama.cpp leaves out.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False
    normalizes: bool = False


PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer((WORDS_GPT2,)),
    "smollm": PreTokenizer((DIGIT, WORDS_GPT2)),
    "llama-bpe": PreTokenizer((WORDS_LLAMA3,), whole_words=True, adds_bos=True),
    "smaug-bpe": PreTokenizer((WORDS_LLAMA3,)),
    "qwen2": PreTokenizer((WORDS_QWEN2,), normalizes=True),
    "deepseek-r1-qwen": PreTokenizer((WORDS_QWEN2,)),
    "tekken": PreTokenizer((WORDS_TEKKEN,), whole_words=True, adds_bos=True),
    "default": PreTokenizer(WORDS_DEFAULT),
}
ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}


# -- reading -------------------------------------------------------------------------------------------------


def tokenizer_from_gguf(metadata: dict[str, Any], rows: int, where: str) -> Tokenizer:
    """Build the tokenizer a GGUF file describes; it gives the same ids as llama.cpp.

    Args:
        metadata: the file's.
        rows: rows of the embedding, which the vocabulary must not exceed.
        where: the file, for errors.

    Raises:
        ModelError: for a kind or pre-tokenizer that cannot be rebuilt exactly, by its name, and for metadata
            that does not fit together.
    """
    tokens = _list(metadata, "tokens", where)
    if len(tokens) > rows or len(set(tokens)) < len(tokens):
        what = (
            f"{len(tokens)} tokens, {len(set(tokens))} of them different, do not fit {rows} embedding rows."
        )
        raise ModelError(what, where=where, remedy=READ_AGAIN)
    named = _named_tokens(metadata, tokens, where)
    kind = metadata.get(KEY + "model")
    try:
        types = _numbers(metadata, "token_type", [TokenType.NORMAL] * len(tokens), len(tokens))
        if kind == "gpt2":
            backend, adds_bos = _byte_level(metadata, tokens, types, where)
        elif kind == "llama":
            backend, adds_bos = _sentencepiece(metadata, tokens, types, named.get("unk")), True
        else:
            remedy = "Supported: gpt2 (byte-level BPE) and llama (SentencePiece BPE)."
            raise ModelError(f"tokenizer kind {kind!r} is not supported.", where=where, remedy=remedy)
        _add_whole_tokens(backend, tokens, types)
        if metadata.get(KEY + "add_bos_token", adds_bos) and "bos" in named:
            backend.post_processor = _beginning_with(named["bos"], tokens.index(named["bos"]))
    except ModelError:
        raise
    except Exception as error:  # the library raises bare Exception
        what = f"the tokenizer's metadata does not fit together: {error}."
        raise ModelError(what, where=where, remedy=READ_AGAIN) from error
    ends = [tokens.index(named.pop(name)) for name in ("eot", "eom") if name in named]
    template = metadata.get("tokenizer.chat_template")
    template = template if isinstance(template, str) else None
    return Tokenizer(backend, template, eos_ids=ends, where=where, **named)


def _list(metadata: dict[str, Any], name: str, where: str) -> list[str]:
    value = metadata.get(KEY + name)
    if not isinstance(value, list):
        raise ModelError(f"metadata key {KEY + name!r} is missing.", where=where, remedy=READ_AGAIN)
    return value


def _numbers(metadata: dict[str, Any], name: str, default: Sequence[float], count: int) -> list[float]:
    values = [float(value) for value in metadata.get(KEY + name, default)]
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries for {count} tokens")
    return values


def _named_tokens(metadata: dict[str, Any], tokens: Sequence[str], where: str) -> dict[str, str]:
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot", "eom": "eom"}
    named = {}
    for name, key in keys.items():
        token_id = metadata.get(f"{KEY}{key}_token_id")
        if token_id is None:
            continue
        if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
            what = f"{KEY}{key}_token_id is {token_id}, the vocabulary has {len(tokens)} tokens."
            raise ModelError(what, where=where, remedy=READ_AGAIN)
        named[name] = tokens[token_id]
    return named


def _byte_level(
    metadata: dict[str, Any], tokens: Sequence[str], types: Sequence[float], where: str
) -> tuple[Backend, bool]:
    """GPT-2's kind: text cut into words, bytes merged within words. Also says if it adds a bos by default."""
    name = metadata.get(KEY + "pre")
    pre = PRE_TOKENIZERS.get(ALIASES.get(str(name), str(name)))
    if pre is None:
        what = f"pre-tokenizer {name!r} is unknown." if name else "the file does not name its pre-tokenizer."
        raise ModelError(what, where=where, remedy=f"Known: {', '.join([*PRE_TOKENIZERS, *ALIASES])}.")
    # Rows that only fill up the embedding have no text.
    vocab = {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != TokenType.UNUSED
    }
    merges = [_split_merge(merge) for merge in _list(metadata, "merges", where)]
    backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.whole_words))
    if pre.normalizes:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend, pre.adds_bos


def _split_merge(merge: str) -> tuple[str, str]:
    left, _, right = merge[1:].partition(" ")  # a piece may begin with a space, so look behind it
    return merge[0] + left, right


def _sentencepiece(
    metadata: dict[str, Any], tokens: Sequence[str], types: Sequence[float], unk: str | None
) -> Backend:
    """Llama 2's kind: spaces made visible, characters merged by score, unknown ones spelled in bytes."""
    scores = _numbers(metadata, "scores", [], len(tokens))
    vocab = {token: i for i, token in enumerate(tokens)}
    normal = {t: s for t, s, kind in zip(tokens, scores, types, strict=True) if kind == TokenType.NORMAL}
    merges = merges_by_score(normal)
    backend = Backend(
        models.BPE(vocab=vocab, merges=merges, unk_token=unk, fuse_unk=True, byte_fallback=True)
    )
    visible = normalizers.Replace(" ", SPACE)
    text = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get(KEY + "add_space_prefix", True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), visible])
        backend.decoder = decoders.Sequence([*text, decoders.Strip(" ", 1, 0)])
    else:
        backend.normalizer, backend.decoder = visible, decoders.Sequence(text)
    return backend


def merges_by_score(scores: dict[str, float]) -> list[tuple[str, str]]:
    """The merges SentencePiece does, best first: every split of a piece into two, at the piece's score."""
    best_first = sorted(scores, key=lambda piece: -scores[piece])
    return [
        (piece[:cut], piece[cut:])
        for piece in best_first
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def _add_whole_tokens(backend: Backend, tokens: Sequence[str], types: Sequence[float]) -> None:
    """Register the tokens that text is searched for before anything else."""
    kinds = {TokenType.CONTROL: True, TokenType.UNKNOWN: True, TokenType.USER_DEFINED: False}
    for kind, special in kinds.items():
        chosen = [
            AddedToken(t, special=special, normalized=False)
            for t, k in zip(tokens, types, strict=True)
            if k == kind
        ]
        backend.add_tokens(chosen)


def _beginning_with(token: str, token_id: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", "$B"], special_tokens=[(token, token_id)]
    )


# -- writing -------------------------------------------------------------------------------------------------


def write_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, bos: str | None, rows: int, where: str) -> None:
    """Add the metadata from which llama.cpp builds a tokenizer that gives the same ids.

    Args:
        writer: the file to be.
        tokenizer: a byte-level BPE, or a BPE of SentencePiece's kind.
        bos: the token that begins a text, if there is one.
        rows: rows of the embedding; those beyond the vocabulary are marked unused.
        where: the place the tokenizer came from, for errors.

    Raises:
        ModelError: for a tokenizer that GGUF cannot express exactly, naming the part.
    """
    data = json.loads(tokenizer.backend.to_str())
    model = data["model"]
    if model["type"] != "BPE":
        raise _inexpressible(f"tokenizer kind {model['type']!r}", where)
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
        raise _inexpressible("a BPE with prefixes, suffixes or dropout", where)
    merges = [
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]
    ]
    pre = _pre_tokenizer_name(data, where)
    spellings, types = _tokens(data, sentencepiece=pre is None)
    if max(spellings) >= rows:
        what = f"the tokenizer has an id {max(spellings)}, the embedding only {rows} rows."
        raise ModelError(what, where=where, remedy="Use the tokenizer that belongs to the model.")
    writer.add_tokenizer_model("llama" if pre is None else "gpt2")
    writer.add_tokenizer_pre(pre or "default")
    writer.add_token_list([spellings.get(i, f"[PAD{i}]") for i in range(rows)])
    writer.add_token_types([types.get(i, TokenType.UNUSED) for i in range(rows)])
    if pre is None:
        scores = _scores(merges, {t for i, t in spellings.items() if types[i] == TokenType.NORMAL}, where)
        writer.add_token_scores([scores.get(spellings.get(i, ""), 0.0) for i in range(rows)])
        writer.add_add_space_prefix(_has_space_prefix(data, where))
        if model.get("unk_token") in model["vocab"]:
            writer.add_unk_token_id(model["vocab"][model["unk_token"]])
    else:
        writer.add_token_merges([" ".join(merge) for merge in merges])
    _write_special_tokens(writer, tokenizer, bos)


def _tokens(data: dict[str, Any], sentencepiece: bool) -> tuple[dict[int, str], dict[int, TokenType]]:
    """Spelling and type of each id."""
    model = data["model"]
    spellings = {token_id: token for token, token_id in model["vocab"].items()}
    types = dict.fromkeys(spellings, TokenType.NORMAL)
    for token in data["added_tokens"]:
        spellings[token["id"]] = token["content"]
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    if sentencepiece:
        types |= {i: TokenType.BYTE for i, token in spellings.items() if token in BYTE_TOKENS}
        if model.get("unk_token") in model["vocab"]:
            types[model["vocab"][model["unk_token"]]] = TokenType.UNKNOWN
    return spellings, types


def _write_special_tokens(writer: GGUFWriter, tokenizer: Tokenizer, bos: str | None) -> None:
    bos_id = tokenizer.backend.token_to_id(bos) if bos else None
    if bos_id is not None:
        writer.add_bos_token_id(bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    others = sorted(tokenizer.eos_ids - {tokenizer.eos_id})
    for add, token_id in zip((writer.add_eot_token_id, writer.add_eom_token_id), others, strict=False):
        add(token_id)
    # llama.cpp has defaults of its own, so both are always said.
    added = tokenizer.backend.encode("").ids
    writer.add_add_bos_token(bool(added) and added[0] == bos_id)
    writer.add_add_eos_token(bool(added) and added[-1] in tokenizer.eos_ids - {bos_id})
    if tokenizer.template is not None:
        writer.add_chat_template(tokenizer.template.source)


def _pre_tokenizer_name(data: dict[str, Any], where: str) -> str | None:
    """GGUF's name for how a byte-level BPE cuts text into words; None for SentencePiece's kind."""
    steps = _flat(data["pre_tokenizer"], "pretokenizers")
    if data["model"].get("byte_fallback") and not any(step["type"] == "ByteLevel" for step in steps):
        return None
    normalizers_used = [step["type"] for step in _flat(data["normalizer"], "normalizers")]
    patterns = tuple(pattern for step in steps for pattern in _patterns(step))
    whole_words = bool(data["model"].get("ignore_merges"))
    for name, pre in PRE_TOKENIZERS.items():
        same = (patterns, whole_words) == (pre.patterns, pre.whole_words)
        if same and steps[-1]["type"] == "ByteLevel" and normalizers_used == ["NFC"] * pre.normalizes:
            return name
    parts = {name: data[name] for name in ("normalizer", "pre_tokenizer")} | {"ignore_merges": whole_words}
    raise _inexpressible(f"the cutting of words by {json.dumps(parts)}", where)


def _flat(part: dict[str, Any] | None, children: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return part[children] if part["type"] == "Sequence" else [part]


def _patterns(step: dict[str, Any]) -> list[str]:
    """The patterns one step of ``tokenizer.json`` cuts by; an unknown step gives one that no name has."""
    match step:
        case {"type": "Digits", "individual_digits": True}:
            return [DIGIT]
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return [pattern]
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}:
            return [pattern]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": cuts}:
            return [WORDS_GPT2] if cuts else []
    return [json.dumps(step)]


def _scores(merges: Sequence[tuple[str, ...]], normal: set[str], where: str) -> dict[str, float]:
    """A score for each piece with which SentencePiece's algorithm does exactly these merges."""
    done = [(left, right) for left, right in merges if {left, right, left + right} <= normal]
    scores = dict.fromkeys(normal, -float(len(done)))
    for rank, (left, right) in reversed(list(enumerate(done))):
        scores[left + right] = -float(rank)
    again = merges_by_score(scores)
    if [a + b for a, b in again] != [a + b for a, b in done] or set(again) != set(done):
        raise _inexpressible("a BPE whose merges follow no order of scores", where)
    return scores


def _has_space_prefix(data: dict[str, Any], where: str) -> bool:
    prefix = {"type": "Prepend", "prepend": SPACE}
    visible = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps, pre = _flat(data["normalizer"], "normalizers"), data["pre_tokenizer"]
    if pre is None and steps in ([prefix, visible], [visible]):
        return prefix in steps
    match pre:
        case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False} if (
            not steps
        ):
            return False
    raise _inexpressible(
        f"normalizer {json.dumps(data['normalizer'])} with pre-tokenizer {json.dumps(pre)}", where
    )


def _inexpressible(what: str, where: str) -> ModelError:
    remedy = "Serve or convert the Hugging Face folder instead."
    return ModelError(f"GGUF cannot express {what} exactly.", where=where, remedy=remedy)
