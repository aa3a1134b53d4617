"""Which part of a network a stage trains: all of it, what lies above frozen blocks, or adapters."""

from __future__ import annotations

from torch import nn

from nestling.errors import ConfigError
from nestling.model.config import ModelConfig
from nestling.model.decoder import Decoder
from nestling.model.lora import add_lora
from nestling.training.settings import LoRAConfig


def choose_trained(
    decoder: Decoder, frozen_blocks: int, lora: LoRAConfig | None = None, seed: int = 0
) -> None:
    """Mark what is trained, whatever was marked before; with ``lora`` that is adapters only, added here.

    Frozen blocks are counted from the input; the embeddings are frozen with them, and an output layer tied to those.
    Nothing is computed for them in the backward pass, and they have neither gradients nor moments. The marks stay: a
    network that goes through another training is marked anew.

    Raises:
        ConfigError: no block would be left to train.
    """
    require_a_block(decoder.config, frozen_blocks)
    decoder.requires_grad_(lora is None)
    upper = nn.ModuleList(decoder.model.layers[frozen_blocks:])
    if lora is not None:
        add_lora(upper, lora.rank, lora.alpha, seed)
    elif frozen_blocks:
        for module in (decoder.model.embed_tokens, *decoder.model.layers[:frozen_blocks]):
            module.requires_grad_(False)


def require_a_block(config: ModelConfig, frozen_blocks: int, key: str = "frozen_blocks") -> None:
    """Refuse to freeze every block.

    Raises:
        ConfigError: it names ``key``.
    """
    if frozen_blocks >= config.num_layers:
        raise ConfigError(
            f"{key} is {frozen_blocks}, but the model has {config.num_layers} blocks.",
            remedy=f"Give at most {config.num_layers - 1}.",
        )
