"""Writing GGUF: exact round trips, and llama.cpp continues texts with the tokens transformers and we choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from gguf_support import TEXTS, llama_cpp, real_base, write_model
from nestling.errors import ModelError, WorkspaceError
from nestling.generation.engine import Engine
from nestling.generation.protocol import Sampling
from nestling.model.gguf_reader import read_gguf
from nestling.model.gguf_writer import export_gguf
from nestling.model.hf_folder import load_model, read_config, save_model
from nestling.model.layout import PackedLayout
from nestling.text.tokenizer import Tokenizer

torch.set_num_threads(1)

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
BIASES = {"attention_bias": True, "mlp_bias": True}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", BIASES | {"tie_word_embeddings": False, "pre_tokenizer": "llama-bpe"}),
    "llama 3 scaling": ("llama", {"rope_parameters": LLAMA3}),
    "linear scaling": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "mistral": ("mistral", {"pre_tokenizer": "sentencepiece", "head_dim": 24}),
    "qwen2": ("qwen2", {"pre_tokenizer": "qwen2"}),
    "qwen3": (
        "qwen3",
        {"pre_tokenizer": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
}


def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_chooses_the_same_tokens(name: str, tmp_path: Path) -> None:
    family, changes = MODELS[name]
    folder = write_model(tmp_path / "model", family, seed=len(name), **changes)
    export_gguf(folder, tmp_path / "m.gguf", "f32")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.load(folder)
    compared = 0
    with llama_cpp(tmp_path / "m.gguf") as theirs:
        for text in TEXTS[:3]:
            prompt = tokenizer.encode(text)
            answer = theirs.greedy(prompt, 64)  # it stops at end tokens
            assert answer == greedy(model, prompt, 64)[: len(answer)]
            compared += len(answer)
    assert compared >= 64


@pytest.mark.slow
def test_the_base_computes_the_same_here_in_transformers_and_in_llama_cpp(tmp_path: Path) -> None:
    folder, ours = tmp_path / "model", load_model(real_base(), torch.float32)
    folder.mkdir()
    save_model(folder, ours)
    export_gguf(folder, tmp_path / "m.gguf", "f32")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for text in TEXTS:
        ids = torch.tensor(ours.tokenizer.encode(text))
        with torch.no_grad():
            logits = ours.decoder.logits(ours.decoder(ids, PackedLayout.from_lengths([len(ids)])))
            assert float((logits - model(ids[None]).logits[0]).abs().max()) < 1e-4
    prompt = Tokenizer.load(folder).render_prompt(
        [{"role": "user", "content": "Write a short story about a fox."}]
    )
    with llama_cpp(tmp_path / "m.gguf", threads=2) as theirs:
        answer = theirs.greedy(prompt, 64)
    assert len(answer) == 64
    assert answer == greedy(model, prompt, 64)
    engine = Engine(ours)
    engine.submit_ids(prompt, Sampling(temperature=0, max_tokens=64))
    [done] = engine.drain([1])
    assert list(done.token_ids) == answer


@pytest.mark.parametrize(("dtype", "error"), [("f32", 0.0), ("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 2e-2)])
def test_stored_types(dtype: str, error: float, tmp_path: Path) -> None:
    # 96 columns divide into blocks of 32, 72 do not and stay f16.
    folder = write_model(tmp_path / "model", "llama")
    export_gguf(folder, tmp_path / "m.gguf", dtype)
    found, expected = read_gguf(tmp_path / "m.gguf").tensors, load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        allowed = 0.0 if tensor.dim() == 1 else error * float(tensor.abs().max())
        assert float((found[name] - tensor).abs().max()) <= allowed, name
    with llama_cpp(tmp_path / "m.gguf") as theirs:
        assert theirs.greedy([5, 6, 7], 2)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_round_trip_is_exact(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("round")
    family = data.draw(st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]))
    kv_heads, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    head_dim = 2 * data.draw(st.integers(1, 12))
    heads = kv_heads * groups
    square = family == "qwen2" or data.draw(st.booleans())
    changes: dict[str, Any] = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_size": heads * (head_dim if square else data.draw(st.integers(1, 9))),
        "intermediate_size": data.draw(st.integers(1, 40)),
        "num_hidden_layers": data.draw(st.integers(1, 3)),
        "tie_word_embeddings": data.draw(st.booleans()),
        "rms_norm_eps": data.draw(st.sampled_from([1e-5, 1e-6, 3e-5])),
        "max_position_embeddings": data.draw(st.integers(16, 100_000)),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": data.draw(st.sampled_from([1e4, 5e5, 1e6])),
        },
    }
    if family in ("llama", "qwen3"):
        changes["attention_bias"] = data.draw(st.booleans())
    folder = write_model(tmp_path / "model", family, seed=heads, **changes)
    export_gguf(folder, tmp_path / "m.gguf", "f32")
    model = read_gguf(tmp_path / "m.gguf")
    expected = load_file(folder / "model.safetensors")
    assert model.tensors.keys() == expected.keys()
    assert all(torch.equal(model.tensors[name], tensor) for name, tensor in expected.items())
    config = read_config(folder).to_hf()
    if family == "mistral":  # GGUF knows it as a llama
        config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": False}
        config |= {"mlp_bias": False}
        del config["sliding_window"]
    assert {key: model.config[key] for key in config} == config


def test_an_export_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama")
    out = tmp_path / "out" / "m.gguf"
    export_gguf(folder, out, "f16")
    before = out.read_bytes()
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "layers.1.mlp.up" not in k}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 tensors are missing, first 'model.layers.1.mlp.up_proj.weight'"):
        export_gguf(folder, out, "f16")
    save_file(tensors | {"model.norm.weight": torch.ones(7)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"'model.norm.weight' of shape \[7\]"):
        export_gguf(folder, out, "f16")
    assert [path.name for path in out.parent.iterdir()] == ["m.gguf"]
    assert out.read_bytes() == before


def test_what_cannot_be_exported_is_refused_by_name(tmp_path: Path) -> None:
    for family, changes, message in (
        ("qwen3", {"rope_parameters": LLAMA3}, "Llama 3 rope scaling for qwen3"),
        ("qwen2", {"head_dim": 16}, "a qwen2 of 6 heads of 16 in width 72"),
    ):
        folder = write_model(tmp_path / family, family, **changes)
        with pytest.raises(ModelError, match=message):
            export_gguf(folder, tmp_path / "m.gguf")
    with pytest.raises(ModelError, match="dtype 'q4_9' is unknown"):
        export_gguf(folder, tmp_path / "m.gguf", "q4_9")
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match="a file stands where a folder is needed"):
        export_gguf(write_model(tmp_path / "llama", "llama"), tmp_path / "file" / "m.gguf")
