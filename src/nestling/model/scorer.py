"""The reward model's network: a decoder's trunk with one number read off an answer's last token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nestling.errors import ModelError
from nestling.model.config import FAMILIES
from nestling.model.decoder import Decoder
from nestling.model.heads import ScalarHead
from nestling.model.hf_folder import build_decoder, read_config, read_tensors, save_network
from nestling.model.layout import PackedLayout
from nestling.text.files import read_json
from nestling.text.tokenizer import Tokenizer

NORMALISATION_FILE = "reward.json"


class Scorer(nn.Module):
    """Raw and normalised scores of prompt + answer.

    ``mean`` and ``std`` are those of raw scores on reference answers; they travel with the model, so that a score of 1
    always means one standard deviation better than the model it was raised from.
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.decoder, self.tokenizer = decoder, tokenizer
        self.head = ScalarHead(decoder.config.hidden_size, bias=False)
        self.mean, self.std = 0.0, 1.0

    def forward(self, ids: Tensor, layout: PackedLayout, last: Tensor) -> Tensor:
        """ids [T], last [K] row indices of final tokens -> raw scores [K] in fp32."""
        return self.head(self.decoder(ids, layout)[last])

    def normalise(self, raw: Tensor) -> Tensor:
        return (raw - self.mean) / self.std

    @torch.no_grad()
    def normalised_head(self, weight: float = 1.0) -> ScalarHead:
        """A head that gives ``weight`` times the normalised score of the same hidden state."""
        head = ScalarHead(self.decoder.config.hidden_size, bias=True).to(self.head.weight.device)
        head.weight.copy_(weight * self.head.weight / self.std)
        assert head.bias is not None  # asked for above
        head.bias.fill_(-weight * self.mean / self.std)
        return head


def save_scorer(folder: Path, scorer: Scorer) -> None:
    """Write a folder that ``transformers.AutoModelForSequenceClassification`` opens, plus the normalisation."""
    family = FAMILIES[scorer.decoder.config.family].replace("ForCausalLM", "ForSequenceClassification")
    config: dict[str, Any] = scorer.decoder.config.to_hf() | {
        "architectures": [family], "num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0},
    }  # fmt: skip
    extra = {"score.weight": scorer.head.weight.detach()[None]}
    save_network(folder, scorer.decoder, scorer.tokenizer, config, extra)
    (folder / NORMALISATION_FILE).write_text(json.dumps({"mean": scorer.mean, "std": scorer.std}) + "\n")


def load_scorer(folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> Scorer:
    """Load a reward model folder.

    Raises:
        ModelError: it is missing, damaged, or no reward model.
    """
    config = read_config(folder)
    heads: dict[str, Tensor] = {}

    def trunk_tensors() -> Any:
        for name, tensor in read_tensors(folder):
            if name == "score.weight":
                heads[name] = tensor
            else:
                yield name, tensor

    decoder = build_decoder(config, trunk_tensors(), str(folder), dtype, device)
    if "score.weight" not in heads:
        raise ModelError(
            "holds no scalar head.", where=str(folder), remedy="Point at a reward model's folder."
        )
    scorer = Scorer(decoder, Tokenizer.load(folder)).to(device)
    scorer.head.weight = nn.Parameter(heads["score.weight"][0].to(device=device, dtype=torch.float32))
    stored = read_json(folder / NORMALISATION_FILE)
    scorer.mean, scorer.std = float(stored["mean"]), float(stored["std"])
    return scorer
