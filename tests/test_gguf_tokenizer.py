"""GGUF tokenizers give the ids of llama.cpp and of the tokenizer.json they were written from."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, pre_tokenizers, processors

from gguf_support import TEXTS, LlamaCpp, llama_cpp, real_base, rewrite, write_model
from nestling.errors import ModelError
from nestling.model.gguf_header import read_header
from nestling.model.gguf_reader import read_gguf
from nestling.model.gguf_writer import export_gguf
from nestling.text.tokenizer import Tokenizer

torch.set_num_threads(1)

KINDS = ("gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "sentencepiece", "sentencepiece-bare")
NASTY = [
    *TEXTS,
    "",
    " ",
    "\n",
    "1",
    "a  1   22    333 4444 55555",
    "x\n\n\ny\r\n\r\nz \n \n",
    "'S 'T 'RE 'll I'M you'Ve o'clock ''' 's",
    "\t\v\f\u00a0\u2003\u3000\u200b\ufeff|",
    "½ ² ٣ Ⅷ 五 1½",
    "🇫🇷👨‍👩‍👧‍👦 👍🏽 \U0001f9ff",
    "ﷺ Ǆ ŉ ß İı ΑΣ σς",
    "नमस्ते ไทย עברית العربية 한국어 ひらがな",
    "<|im_end|><|im_start|>user <think></think> <s></s><unk><0x0A>",
    "\x00\x01\x7f\x80\ud7ff\ue000\uffff\U0010ffff",
    "a" * 300 + " " * 70 + "!" * 70,
    "▁visible▁▁space ▁ Ġ Ċ",
]  # fmt: skip

pieces = st.sampled_from(
    [*NASTY[5:], " ", "  ", "\n", "7", "42", "the ", " Fox", "'s", "é", "。", "<|im_end|>"]
)
texts = st.lists(st.one_of(pieces, st.text(max_size=6)), max_size=8).map("".join)


@dataclass(frozen=True)
class Triple:
    """One vocabulary three times: as tokenizer.json, through GGUF, in llama.cpp."""

    kind: str
    original: Backend
    ours: Tokenizer
    theirs: LlamaCpp

    def agree_on(self, text: str) -> bool:
        """Asserts on the way, so that a failure shows the ids."""
        if self.kind == "qwen2":
            text = unicodedata.normalize("NFC", text)  # llama.cpp leaves this step out
        ids = self.ours.backend.encode(text, add_special_tokens=False).ids
        assert ids == self.original.encode(text, add_special_tokens=False).ids
        # A NUL ends a text in C, and llama.cpp only knows tekken's pattern for ASCII letters.
        if "\x00" not in text and (self.kind != "tekken" or text.isascii()):
            assert ids == self.theirs.tokenize(text, special=True)
            assert self.ours.encode(text) == self.theirs.tokenize(text)
        if not self.kind.startswith("sentencepiece") and not self.ours.control_ids & set(ids):
            assert self.ours.decode(ids) == text
        return True


@pytest.fixture(scope="module", params=KINDS)
def triple(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triple]:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, "llama", pre_tokenizer=request.param)
    export_gguf(folder, folder / "m.gguf", "f32")
    original = Backend.from_file(str(folder / "tokenizer.json"))
    with llama_cpp(folder / "m.gguf") as server:
        yield Triple(request.param, original, read_gguf(folder / "m.gguf").tokenizer, server)


def test_nasty_texts(triple: Triple) -> None:
    for text in NASTY:
        assert triple.agree_on(text)


@settings(max_examples=120, deadline=None)
@given(text=texts)
def test_random_texts(triple: Triple, text: str) -> None:
    assert triple.agree_on(text)


def test_the_chat_template_and_special_tokens_survive(triple: Triple) -> None:
    sentencepiece = triple.kind.startswith("sentencepiece")
    end = "</s>" if sentencepiece else "<|im_end|>"
    assert triple.ours.eos_id == triple.original.token_to_id(end)
    assert triple.ours.pad_id == triple.original.token_to_id("<unk>" if sentencepiece else "<|endoftext|>")
    assert triple.ours.template is not None
    rendered = triple.ours.template.render(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, special_tokens={}
    )
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_base_equals_llama_cpp() -> None:
    ours = read_gguf(real_base()).tokenizer
    # Its vocabulary lacks some bytes. The tokenizers library skips them before it merges, llama.cpp afterwards; and a
    # NUL ends a text in C.
    unknown = {0, *(b for b in range(0x20) if not ours.encode(chr(b))), 0xF1, 0xF2}
    assert ours.encode(" \x16:") == ours.encode(" :")
    with llama_cpp(real_base()) as theirs:

        @settings(max_examples=150, deadline=None)
        @given(text=texts)
        def same(text: str) -> None:
            text = "".join(c for c in text if not unknown & {*c.encode()})
            assert ours.encode(text) == theirs.tokenize(text)
            assert ours.backend.encode(text).ids == theirs.tokenize(text, special=True)

        same()
        for text in NASTY:
            if "\x00" not in text:
                assert ours.encode(text) == theirs.tokenize(text)


@pytest.mark.parametrize("name", ["default", "smaug-bpe", "deepseek-r1-qwen", "llama-v3"])
def test_other_names(name: str, tmp_path: Path) -> None:
    export_gguf(write_model(tmp_path / "model", "llama", pre_tokenizer="gpt-2"), tmp_path / "m.gguf", "f32")
    path = rewrite(tmp_path / "m.gguf", tmp_path / "other.gguf", {"tokenizer.ggml.pre": name})
    ours = read_gguf(path).tokenizer
    with llama_cpp(path) as theirs:
        for text in NASTY:
            if "\x00" not in text:
                assert ours.encode(text) == theirs.tokenize(text)


# -- what is kept beside the ids -----------------------------------------------------------------------------


def test_a_text_that_begins_with_bos(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama", pre_tokenizer="sentencepiece")
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    for adds in (False, True):
        if adds:
            backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
            backend.save(str(folder / "tokenizer.json"))
        export_gguf(folder, tmp_path / "m.gguf", "f32")
        header, model = read_header(tmp_path / "m.gguf"), read_gguf(tmp_path / "m.gguf")
        assert header.metadata["tokenizer.ggml.add_bos_token"] is adds
        assert header.metadata["tokenizer.ggml.add_eos_token"] is False
        assert model.config["bos_token_id"] == 1
        assert (model.tokenizer.backend.encode("fox").ids[0] == 1) is adds
        assert model.tokenizer.encode("fox")[0] != 1


def test_rows_beyond_the_vocabulary_stay_unused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama", vocab_size=600)
    export_gguf(folder, tmp_path / "m.gguf", "f32")
    model = read_gguf(tmp_path / "m.gguf")
    assert model.config["vocab_size"] == 600
    assert model.tokenizer.vocab_size == Tokenizer.load(folder).vocab_size < 600
    with llama_cpp(tmp_path / "m.gguf") as theirs:
        assert theirs.tokenize(TEXTS[0]) == model.tokenizer.encode(TEXTS[0])


def test_several_end_tokens(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    export_gguf(folder, tmp_path / "m.gguf", "f32")
    model = read_gguf(tmp_path / "m.gguf")
    assert model.config["eos_token_id"] == [2, 0]
    assert model.tokenizer.eos_ids == Tokenizer.load(folder).eos_ids == {2, 0}


def _set(part: str, value: Any) -> Callable[[Backend], None]:
    return lambda backend: setattr(backend, part, value)


@pytest.mark.parametrize(
    ("pre_tokenizer", "change", "message"),
    [
        ("gpt-2", _set("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)), "add_prefix_space"),
        ("gpt-2", _set("pre_tokenizer", pre_tokenizers.Whitespace()), "Whitespace"),
        ("gpt-2", _set("pre_tokenizer", None), "cutting of words"),
        ("gpt-2", _set("normalizer", normalizers.Lowercase()), "Lowercase"),
        ("sentencepiece", _set("normalizer", normalizers.NFKC()), "NFKC"),
        (
            "sentencepiece",
            _set("pre_tokenizer", pre_tokenizers.Metaspace(prepend_scheme="first")),
            "Metaspace",
        ),
    ],
)
def test_what_gguf_cannot_express_is_refused_by_name(
    pre_tokenizer: str, change: Callable[[Backend], None], message: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", "llama", pre_tokenizer=pre_tokenizer)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    change(backend)
    backend.save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match=message):
        export_gguf(folder, tmp_path / "m.gguf", "f32")
    assert list(tmp_path.glob("*.gguf*")) == []


def test_merges_without_an_order_of_scores_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama", pre_tokenizer="sentencepiece")
    spec = json.loads((folder / "tokenizer.json").read_text())
    merges = spec["model"]["merges"]
    twin = next(i for i, (a, b) in enumerate(pairwise(merges)) if "".join(a) == "".join(b))
    merges.append(merges.pop(twin))
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ModelError, match="order of scores"):
        export_gguf(folder, tmp_path / "m.gguf", "f32")
