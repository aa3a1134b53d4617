"""What several peers load."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


def prepare(setting: dict[str, Any]) -> torch.dtype:
    """Set the threads; returns the dtype that models are loaded in."""
    torch.set_num_threads(setting["threads"])
    torch.manual_seed(setting["seed"])
    dtype: torch.dtype = getattr(torch, setting["dtype"])
    return dtype


def policy(setting: dict[str, Any], dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(setting["model"], dtype=dtype)


def scorer(setting: dict[str, Any], dtype: torch.dtype) -> Any:
    """A reward or value model of full depth."""
    return AutoModelForSequenceClassification.from_pretrained(setting["scorer"], dtype=dtype, num_labels=1)


def tokenizer(setting: dict[str, Any]) -> Any:
    return AutoTokenizer.from_pretrained(setting["model"])
