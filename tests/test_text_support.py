"""Small tokenizers and chat templates for the text tests: the styles the field uses, in short."""

from __future__ import annotations

import json
from functools import cache

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from nestling.text.messages import Message
from nestling.text.tokenizer import Tokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "What is the capital of France? Paris is the capital of France.",
    "user\nassistant\nsystem\n\n\nYou are a helpful assistant.\n\n",
    "你好，世界。 Привет, мир! 🙂 def main():\n    return 0 <b> <b> <b>",
]

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra>")

SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\\nYou are Owl, made by Zoo Labs<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN2 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Heron. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role != 'system' %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN3 = """{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set answer = m.content %}
        {%- set thought = '' %}
        {%- if '</think>' in answer %}
            {%- set thought = answer.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set answer = answer.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.last %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- answer + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
LLAMA3 = """{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
MISTRAL = """{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}
{%- else %}{%- set turns = messages %}{%- endif %}
{{- bos_token }}
{%- for m in turns %}
    {%- if (m['role'] == 'user') == (loop.index0 % 2 == 1) %}
        {{- raise_exception('turns must alternate') }}
    {%- endif %}
    {%- if m['role'] == 'user' %}
        {{- '[INST] ' }}
        {%- if loop.first and system is defined %}{{- system + '\\n\\n' }}{%- endif %}
        {{- m['content'] + '[/INST]' }}
    {%- else %}{{- ' ' + m['content'] + eos_token }}{%- endif %}
{%- endfor %}
"""
STYLES = ("smollm2", "qwen2", "qwen3", "llama3", "mistral", "mistral-pieces")


@cache
def byte_level_json(control: tuple[str, ...], plain: tuple[str, ...] = (), words: str | None = None) -> str:
    """A byte-level BPE; ``words`` is the pattern it cuts text by, GPT-2's when absent."""
    backend = tokenizers.Tokenizer(models.BPE())
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    cut = [] if words is None else [pre_tokenizers.Split(tokenizers.Regex(words), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cut, bytes_of_words])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(control), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return backend.to_str()


@cache
def pieces_json() -> str:
    """A SentencePiece-like BPE: "▁" for spaces, byte tokens for what the vocabulary lacks."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    backend.train_from_iterator(SENTENCES[:3], trainer)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    spec = json.loads(backend.to_str())
    vocab = spec["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    # As converters from SentencePiece write it: a merge that would spell the control token from plain text.
    for piece in ("<", "s>", ">"):
        vocab.setdefault(piece, len(vocab))
    spec["model"]["merges"] += [["s", ">"], ["<", "s>"]]
    return json.dumps(spec)


def parts(style: str) -> tuple[str, str, dict[str, str]]:
    """tokenizer.json, template and named tokens of a style."""
    if style == "mistral-pieces":
        return pieces_json(), MISTRAL, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    if style == "mistral":
        control = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
        return byte_level_json(control), MISTRAL, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    if style == "llama3":
        control = (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        )
        control += ("<|finetune_right_pad_id|>",)
        return (
            byte_level_json(control, words=r"\s*[\r\n]+| ?[^\s]+|\s+"),
            LLAMA3,
            {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"},
        )
    template = {"smollm2": SMOLLM2, "qwen2": QWEN2, "qwen3": QWEN3}[style]
    named = {"eos": "<|im_end|>", "pad": "<|im_end|>" if style == "smollm2" else "<|endoftext|>"}
    if style == "smollm2":
        named["bos"] = "<|im_start|>"
    return byte_level_json(CHATML, ("<think>", "</think>")), template, named


def make(style: str) -> Tokenizer:
    spec, template, named = parts(style)
    return Tokenizer(tokenizers.Tokenizer.from_str(spec), template, **named)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str) -> Message:
    return Message(role="assistant", content=content)


def system(content: str) -> Message:
    return Message(role="system", content=content)
