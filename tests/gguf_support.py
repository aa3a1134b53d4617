"""Small models of each architecture, a llama.cpp to compare with, and the real base, for the GGUF tests."""

from __future__ import annotations

import json
import os
import platform
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from transformers import AutoConfig, AutoModelForCausalLM

from nestling.workflow.fetch import DEFAULT_BASE, fetch_base, progress_bar

TEXTS = [
    "The quick brown fox jumps over a dog. It's 12 o'clock; they'll meet at 10:30, I'm SURE we've won.",
    "def f(x):\n    return x ** 2 + 34567\n\n\n\t# naïve café, ½ price: $1,234.50!!! (really?) --> [yes]",
    "你好，世界！我叫小明。 Привет, мир. Ünïcödé ﬁ 🙂👍🏽 e\u0301 \u200b\u3000 end  ",
    "  leading and   inner    spaces  7  8\r\n\r\n tabs\t\tand\u00a0more 100% a1b2c3 DON'T can't",
]
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace("{1,3}", "")
TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def cut_by(pattern: str) -> pre.Sequence:
    return pre.Sequence(
        [pre.Split(Regex(pattern), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


# How tokenizer.json of well-known models says it, by GGUF's name.
PRE_TOKENIZERS = {
    "gpt-2": pre.ByteLevel(add_prefix_space=False),
    "smollm": pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]),
    "llama-bpe": cut_by(LLAMA3_WORDS),
    "qwen2": cut_by(QWEN2_WORDS),
    "tekken": cut_by(TEKKEN_WORDS),
}


@cache
def byte_level_json(name: str) -> str:
    backend = Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    backend.pre_tokenizer, backend.decoder = PRE_TOKENIZERS[name], decoders.ByteLevel()
    if name == "qwen2":
        backend.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre.ByteLevel.alphabet(),
        special_tokens=list(CONTROL),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return backend.to_str()


@cache
def sentencepiece_json(space_prefix: bool) -> str:
    """Pieces with a strict order of scores, as SentencePiece trains them and converters write them."""
    visible = normalizers.Replace(" ", "▁")
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    text = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if space_prefix:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), visible])
        backend.decoder = decoders.Sequence([*text, decoders.Strip(" ", 1, 0)])
    else:
        backend.normalizer, backend.decoder = visible, decoders.Sequence(text)
    special = ["<unk>", "<s>", "</s>"]
    spec = json.loads(backend.to_str())
    # Every short part of every word, best first at random: most pieces can be merged in several ways.
    words = f" {TEXTS[0]} {TEXTS[1]}".replace(" ", " ▁").split(" ")
    parts = {
        word[i:j] for word in words for i in range(len(word)) for j in range(i + 1, min(i + 6, len(word) + 1))
    }
    pieces = random.Random(0).sample(sorted(parts), len(parts))
    order = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    spec["model"]["vocab"] = {piece: i for i, piece in enumerate(order)}
    known = set(pieces)
    spec["model"]["merges"] = [
        [piece[:cut], piece[cut:]]
        for piece in pieces
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in known and piece[cut:] in known
    ]
    backend = Tokenizer.from_str(json.dumps(spec))
    backend.add_special_tokens(special)
    return backend.to_str()


def write_tokenizer(folder: Path, spec: str, bos: str | None, eos: str, pad: str) -> int:
    """Write the tokenizer files of a Hugging Face folder; returns the number of tokens."""
    (folder / "tokenizer.json").write_text(spec, "utf-8")
    config = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return Tokenizer.from_str(spec).get_vocab_size()


def write_model(
    folder: Path, family: str, seed: int = 0, pre_tokenizer: str = "smollm", **changes: Any
) -> Path:
    """A random model whose heads differ from its key/value heads, saved by transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    if pre_tokenizer.startswith("sentencepiece"):
        spec = sentencepiece_json(pre_tokenizer == "sentencepiece")
        vocab = write_tokenizer(folder, spec, "<s>", "</s>", "<unk>")
    else:
        vocab = write_tokenizer(folder, byte_level_json(pre_tokenizer), None, "<|im_end|>", "<|endoftext|>")
    shape = {
        "vocab_size": vocab, "hidden_size": 72, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "use_sliding_window": False,
    }  # fmt: skip
    if family == "qwen2":
        shape["head_dim"] = 12  # the only choice llama.cpp has for it
    config = AutoConfig.for_model(family, **shape | {"sliding_window": None} | changes)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        # Random biases and norms too: wrong ones must show.
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(folder)
    return folder


class LlamaCpp:
    """A llama.cpp server in this process, asked over loopback."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._http = httpx.Client(base_url=server.listening_address, timeout=120)

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Ids of ``text``; with ``special`` control tokens in it are read as such."""
        body = {"content": text, "add_special": False, "parse_special": special}
        return self._post("/tokenize", body)["tokens"]

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        body = {"prompt": list(prompt), "n_predict": count, "top_k": 1, "temperature": 0.0}
        return self._post("/completion", body | {"return_tokens": True})["tokens"]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self._http.post(path, json=body)
        answer.raise_for_status()
        return answer.json()


@contextmanager
def llama_cpp(path: Path, threads: int = 1) -> Iterator[LlamaCpp]:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("llama.cpp's wheel exists for x86-64 Linux only")
    import xllamacpp  # elsewhere a missing package is a failure, not a skip

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.port, params.warmup = 512, 1, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.verbosity = -1
    server = xllamacpp.Server(params)
    try:
        yield LlamaCpp(server)
    finally:
        del server


@cache
def real_base() -> Path:
    """The base model's file, downloaded once for all test runs on this machine."""
    folder = os.environ.get("NESTLING_TEST_CACHE") or Path.home() / ".cache" / "nestling"
    with progress_bar() as report:
        return fetch_base(DEFAULT_BASE, Path(folder), report).path


def rewrite(
    source: Path, out: Path, metadata: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None
) -> Path:
    """Copy a GGUF file with some metadata and tensors changed, or left out where the new value is None.

    A tensor is a numpy array, or (bytes, shape, stored type).
    """
    changes, replaced = metadata or {}, tensors or {}
    reader = GGUFReader(source)
    writer = GGUFWriter(out, "")
    writer.kv_data = [{}]
    for key, field in reader.fields.items():
        value = changes.get(key, field.contents())
        if not key.startswith("GGUF.") and value is not None:
            writer.add_key_value(
                key, value, field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
    for key in changes.keys() - reader.fields.keys():
        kinds = {str: GGUFValueType.STRING, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
        writer.add_key_value(key, changes[key], kinds[type(changes[key])])
    stored = {t.name: (t.data.tobytes(), t.shape.tolist()[::-1], t.tensor_type) for t in reader.tensors}
    for name, value in replaced.items():
        if isinstance(value, np.ndarray):
            value = (value.astype(np.float32).tobytes(), value.shape, GGMLQuantizationType.F32)
        stored[name] = value
    stored = {name: value for name, value in stored.items() if value is not None}
    for name, (data, shape, kind) in stored.items():
        writer.add_tensor_info(name, shape, np.dtype(np.float32), len(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for data, _, _ in stored.values():
        writer.write_tensor_data(np.frombuffer(data, np.uint8))
    writer.close()
    return out
