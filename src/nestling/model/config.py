"""The shape of a model, read from and written to Hugging Face's ``config.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nestling.errors import ModelError

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@dataclass(frozen=True)
class ModelConfig:
    """Everything that shapes the network. Field names follow the field's papers; see ``from_hf`` for the mapping.

    ``rope_scaling`` is None, {"rope_type": "linear", "factor"} or {"rope_type": "llama3", ...} (Llama 3.1 report).
    ``context_length`` is the longest sequence in tokens; where a sliding window is shorter, the window.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    context_length: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_embeddings: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @classmethod
    def from_hf(cls, raw: dict[str, Any], where: str) -> ModelConfig:
        """Read a Hugging Face config.

        Raises:
            ModelError: for an architecture or a feature this network does not have, by its name.
        """
        family = raw.get("model_type")
        if family not in FAMILIES:
            raise ModelError(
                f"architecture {family!r} is not supported.",
                where=where,
                remedy=f"Supported model types: {', '.join(FAMILIES)}.",
            )
        try:
            hidden, heads = int(raw["hidden_size"]), int(raw["num_attention_heads"])
            rope = dict(raw.get("rope_parameters") or {})
            theta = float(raw.get("rope_theta") or rope.pop("rope_theta", None) or 10000.0)
            config = cls(
                family=family,
                vocab_size=int(raw["vocab_size"]),
                hidden_size=hidden,
                num_layers=int(raw["num_hidden_layers"]),
                num_heads=heads,
                num_kv_heads=int(raw.get("num_key_value_heads") or heads),
                head_dim=int(raw.get("head_dim") or hidden // heads),
                intermediate_size=int(raw["intermediate_size"]),
                context_length=_context_length(raw),
                rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
                rope_theta=theta,
                rope_scaling=_rope_scaling(raw.get("rope_scaling") or rope, where),
                tie_embeddings=bool(raw.get("tie_word_embeddings")),
                qkv_bias=family == "qwen2" or bool(raw.get("attention_bias")),
                output_bias=family in ("llama", "qwen3") and bool(raw.get("attention_bias")),
                mlp_bias=bool(raw.get("mlp_bias")),
                qk_norm=family == "qwen3",
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the config lacks or misstates {error}.", where=where, remedy="Get the model's files again."
            ) from error
        config.check(raw, where)
        return config

    def check(self, raw: dict[str, Any], where: str) -> None:
        """Refuse sizes that cannot be built and features we would silently compute wrongly."""
        if raw.get("hidden_act", "silu") != "silu":
            raise ModelError(
                f"activation {raw['hidden_act']!r} is not supported, only 'silu'.",
                where=where,
                remedy="Use a model with SwiGLU as Llama and Qwen have it.",
            )
        numbers = asdict(self)
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                     "intermediate_size", "context_length"):  # fmt: skip
            if numbers[name] <= 0:
                raise ModelError(
                    f"{name} is {numbers[name]}, which is impossible.",
                    where=where,
                    remedy="Get config.json again.",
                )
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"{self.num_heads} heads cannot share {self.num_kv_heads} key/value heads.",
                where=where,
                remedy="Get config.json again; the number of heads must be a multiple of the key/value heads.",
            )
        if self.head_dim % 2:
            raise ModelError(
                f"head_dim {self.head_dim} is odd; rotary positions need pairs.",
                where=where,
                remedy="Get config.json again.",
            )

    def to_hf(self) -> dict[str, Any]:
        """The config.json that ``transformers`` (4 and 5), vLLM and llama.cpp's converter read."""
        raw: dict[str, Any] = {
            "architectures": [FAMILIES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.context_length,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling,
            "rope_parameters": {
                "rope_type": "default",
                **(self.rope_scaling or {}),
                "rope_theta": self.rope_theta,
            },
            "tie_word_embeddings": self.tie_embeddings,
            "hidden_act": "silu",
        }
        if self.family in ("llama", "qwen3"):
            raw["attention_bias"] = self.qkv_bias
        if self.family == "llama":
            raw["mlp_bias"] = self.mlp_bias
        if self.family == "mistral":
            raw["sliding_window"] = None
        return raw

    def num_parameters(self) -> int:
        """Parameters of the network, the tied output layer counted once."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * q + 2 * kv)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size


def _context_length(raw: dict[str, Any]) -> int:
    """Longest exact context: we attend fully, which equals a sliding window only up to its width."""
    length = int(raw.get("max_position_embeddings", 2048))
    window = raw.get("sliding_window")
    uses_window = bool(window) and (raw["model_type"] == "mistral" or bool(raw.get("use_sliding_window")))
    return min(length, int(window)) if uses_window and window else length


def _rope_scaling(raw: dict[str, Any] | None, where: str) -> dict[str, Any] | None:
    kind = (raw or {}).get("rope_type", (raw or {}).get("type", "default"))
    if not raw or kind == "default":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(raw["factor"])}
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return {"rope_type": "llama3", **{name: raw[name] for name in names}}
    raise ModelError(
        f"rope scaling {kind!r} is not supported.", where=where, remedy="Supported: default, linear, llama3."
    )
