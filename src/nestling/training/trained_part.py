"""Which part of a network a stage trains: all of it, what lies above frozen blocks, or adapters."""

from __future__ import annotations

from nestling.errors import ConfigError
from nestling.model.decoder import Decoder
from nestling.model.lora import add_lora
from nestling.training.settings import LoRAConfig


def choose_trained(
    decoder: Decoder, frozen_blocks: int, lora: LoRAConfig | None = None, seed: int = 0
) -> None:
    """Mark what is trained, whatever was before; with ``lora`` that is adapters only, added here.

    Frozen blocks are counted from the input; the embeddings are frozen with them, and an output layer tied to those.
    Nothing is computed for them in the backward pass, and they have neither gradients nor moments.

    Raises:
        ConfigError: no block would be left to train.
    """
    count = decoder.config.num_layers
    if frozen_blocks >= count:
        raise ConfigError(
            f"frozen_blocks is {frozen_blocks}, but the model has {count} blocks.",
            remedy=f"Give at most {count - 1}.",
        )
    decoder.requires_grad_(True)
    if lora is not None:
        add_lora(decoder.model, lora.rank, lora.alpha, seed)
        decoder.lm_head.weight.requires_grad_(False)
    if frozen_blocks:
        for module in (decoder.model.embed_tokens, *decoder.model.layers[:frozen_blocks]):
            module.requires_grad_(False)
