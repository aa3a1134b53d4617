"""Model folders in Hugging Face's layout: config.json, safetensors (sharded or not), tokenizer, chat template."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nestling.errors import ModelError
from nestling.model.config import ModelConfig
from nestling.model.decoder import Decoder, Rotary
from nestling.model.gguf_reader import read_gguf
from nestling.text.files import read_json
from nestling.text.tokenizer import Tokenizer


@dataclass
class LoadedModel:
    """A network with the tokenizer that belongs to it."""

    decoder: Decoder
    tokenizer: Tokenizer

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    @property
    def context_length(self) -> int:
        return self.config.context_length


def load_model(path: Path | str, dtype: torch.dtype, device: torch.device | str = "cpu") -> LoadedModel:
    """Load a model folder or a GGUF file, ready for use (evaluation mode, weights in ``dtype`` on ``device``).

    Raises:
        ModelError: what is missing, damaged or unsupported, in which file.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        source = read_gguf(path)
        config = ModelConfig.from_hf(source.config, str(path))
        decoder = build_decoder(config, source.tensors.items(), str(path), dtype, device)
        return LoadedModel(decoder, source.tokenizer)
    config = read_config(path)
    decoder = build_decoder(config, read_tensors(path), str(path), dtype, device)
    return LoadedModel(decoder, Tokenizer.load(path))


def save_model(folder: Path, model: LoadedModel) -> None:
    """Write a folder that ``transformers.AutoModelForCausalLM`` opens. The caller makes it atomic."""
    save_network(folder, model.decoder, model.tokenizer, model.config.to_hf(), {})


def save_network(
    folder: Path, decoder: Decoder, tokenizer: Tokenizer, config: dict[str, Any], extra: dict[str, Tensor]
) -> None:
    """Write weights (plus ``extra`` tensors), config and tokenizer into ``folder``."""
    tensors = {n: p.detach().contiguous() for n, p in decoder.state_dict().items()} | extra
    if decoder.config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    ends = sorted(tokenizer.eos_ids, key=lambda i: (i != tokenizer.eos_id, i))  # the main end token first
    config = config | {
        "eos_token_id": ends,
        "pad_token_id": tokenizer.pad_id,
        "dtype": str(decoder.dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(folder)


def read_config(folder: Path) -> ModelConfig:
    return ModelConfig.from_hf(read_json(folder / "config.json"), str(folder / "config.json"))


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder's safetensors files, one at a time, as stored."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(read_json(index).get("weight_map", {}).values()))
    elif (folder / "model.safetensors").exists():
        files = ["model.safetensors"]
    else:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise ModelError(
            "no safetensors weights found" + (", only pickled ones, which can run code." if pickled else "."),
            where=str(folder),
            remedy="Convert them to safetensors." if pickled else "Point at a complete model folder.",
        )
    for name in files:
        if Path(name).name != name:
            raise ModelError(
                f"the index names a file outside the folder: {name!r}.",
                where=str(index),
                remedy="Do not trust this folder; get the model from its publisher.",
            )
        try:
            with safe_open(folder / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a dict
                    yield key, file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"cannot be read: {error}.", where=str(folder / name), remedy="Get the file again."
            ) from error


def build_decoder(
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    where: str,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Decoder:
    """Make a decoder from named tensors, each moved as it comes so that memory never holds two copies.

    Tensors the network does not know are refused, except a tied output layer and stored rotary tables.
    """
    with torch.device("meta"):
        decoder = Decoder(config)
    expected = {name: parameter.shape for name, parameter in decoder.named_parameters()}
    state: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_embeddings):
            continue
        if name not in expected:
            raise ModelError(
                f"unexpected tensor {name!r}.", where=where, remedy="The config may be another model's."
            )
        if tensor.shape != expected[name]:
            raise ModelError(
                f"tensor {name!r} has shape {list(tensor.shape)}, the config says {list(expected[name])}.",
                where=where,
                remedy="Get config.json and weights of the same model.",
            )
        state[name] = tensor.to(device=device, dtype=dtype)
    missing = sorted(expected.keys() - state.keys())
    if missing:
        raise ModelError(
            f"{len(missing)} tensors are missing, first {missing[0]!r}.",
            where=where,
            remedy="Get the weights again.",
        )
    decoder.load_state_dict(state, strict=False, assign=True)
    if config.tie_embeddings:
        decoder.lm_head.weight = decoder.model.embed_tokens.weight
    decoder.model.rotary = Rotary(config).to(device)
    for parameter in decoder.parameters():
        parameter.requires_grad_(True)
    return decoder.eval()


def copy_decoder(decoder: Decoder, sharing: Collection[str] = ()) -> Decoder:
    """A frozen copy, such as PPO's reference; weights named in ``sharing`` stay common to both."""
    twin = build_decoder(
        decoder.config,
        (
            (name, p.detach() if name in sharing else p.detach().clone())
            for name, p in decoder.named_parameters()
        ),
        "copy",
        decoder.dtype,
        decoder.device,
    )
    return freeze(twin)


def freeze(module: Decoder) -> Decoder:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()
