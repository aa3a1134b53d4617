"""Small real models for tests: a trained byte-level tokenizer and random weights."""

from __future__ import annotations

from typing import Any

import torch

from nestling.model.config import ModelConfig
from nestling.model.decoder import Decoder, initialise
from nestling.model.hf_folder import LoadedModel
from test_text_support import make

torch.set_num_threads(1)


def tiny_config(vocab_size: int, **changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "family": "llama", "vocab_size": vocab_size, "hidden_size": 48, "num_layers": 2, "num_heads": 6,
        "num_kv_heads": 2, "head_dim": 8, "intermediate_size": 96, "context_length": 512, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    return ModelConfig(**values | changes)


def tiny_model(
    seed: int = 0, dtype: torch.dtype = torch.float32, std: float = 0.08, **changes: Any
) -> LoadedModel:
    tokenizer = make("smollm2")
    decoder = initialise(Decoder(tiny_config(tokenizer.vocab_size, **changes)), seed, std)
    return LoadedModel(decoder.to(dtype).eval(), tokenizer)
