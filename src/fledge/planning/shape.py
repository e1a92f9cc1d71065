"""The shape of a model, read from its configuration, and its parameters to the digit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


MODEL_TYPES = ("fledge", "llama", "mistral", "qwen3", "gpt2")

_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "qk_norm": False,
    "z_loss_weight": 0.0,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "fledge": _LLAMA,
    "llama": _LLAMA,
    "mistral": _LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072},
    "qwen3": _LLAMA
    | {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "head_dim": 128}
    | {"max_position_embeddings": 32768, "qk_norm": True},  # it knows no such key: it always has it
    "gpt2": {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "tie_word_embeddings": True,
    },
}
"""What transformers' configuration classes take where a recipe is silent; a test compares them."""

GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
"""GPT2Config's other names for its own keys."""


class NotKnown(ValueError):
    """What a plan needs and nobody can say yet; a run may still find it."""


@dataclass(frozen=True)
class Shape:
    """What decides parameters, FLOPs and memory. Sizes are in elements."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    positions: int
    tied: bool
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    z_loss: bool = False
    activation: str = "silu"
    dropout: bool = False

    @property
    def is_gpt2(self) -> bool:
        """LayerNorm, learned positions, one matrix for queries, keys and values, no gate."""
        return self.model_type == "gpt2"

    @property
    def query_size(self) -> int:
        """Elements of all heads' queries of one token."""
        return self.num_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Elements of all heads' keys of one token."""
        return self.num_key_value_heads * self.head_dim

    def linears(self) -> dict[str, tuple[int, int, bool]]:
        """The matrices of one layer by module name: inputs, outputs, and whether it has a bias."""
        hidden, inner = self.hidden_size, self.intermediate_size
        if self.is_gpt2:
            return {
                "c_attn": (hidden, 3 * hidden, True),
                "attn.c_proj": (hidden, hidden, True),
                "c_fc": (hidden, inner, True),
                "mlp.c_proj": (inner, hidden, True),
            }
        return {
            "q_proj": (hidden, self.query_size, self.attention_bias),
            "k_proj": (hidden, self.key_value_size, self.attention_bias),
            "v_proj": (hidden, self.key_value_size, self.attention_bias),
            "o_proj": (self.query_size, hidden, self.attention_bias),
            "gate_proj": (hidden, inner, self.mlp_bias),
            "up_proj": (hidden, inner, self.mlp_bias),
            "down_proj": (inner, hidden, self.mlp_bias),
        }

    @property
    def layer_matrices(self) -> int:
        """Weights of one layer's matrix products."""
        return sum(inputs * outputs for inputs, outputs, _ in self.linears().values())

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        biases = sum(outputs for _, outputs, bias in self.linears().values() if bias)
        return self.layer_matrices + biases + 2 * self._norm + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def table(self) -> int:
        """Parameters of one vocabulary-sized matrix: the token embedding, or the head."""
        return self.vocab_size * self.hidden_size

    @property
    def embedding(self) -> int:
        """Token embedding, output head if it is a matrix of its own, and learned positions."""
        return self.table * (1 if self.tied else 2) + (self.positions * self.hidden_size if self.is_gpt2 else 0)

    @property
    def body(self) -> int:
        """Everything else: the layers and the last norm."""
        return self.num_layers * self.layer + self._norm

    @property
    def total(self) -> int:
        """All parameters, a tied matrix counted once."""
        return self.embedding + self.body

    @property
    def matrices(self) -> int:
        """Weights that take part in a matrix product: the layers' and the head's, tied or not."""
        return self.num_layers * self.layer_matrices + self.table

    @property
    def _norm(self) -> int:
        return self.hidden_size * (2 if self.is_gpt2 else 1)


def read_shape(config: dict[str, Any], where: str) -> Shape:
    """The shape that a recipe's `model_config`, or a config.json, describes.

    Args:
        config: keys of the configuration class of its `model_type`; fledge if that is left out.
        where: file and key, for messages.

    Raises:
        ValueError: another architecture, or sizes that do not go together.
    """
    model_type = config.get("model_type", MODEL_TYPES[0])
    if model_type not in MODEL_TYPES:
        raise NotKnown(f"{where}: model_type {model_type!r}: the plan knows {', '.join(MODEL_TYPES)}")
    stated = {GPT2_NAMES.get(key, key): value for key, value in config.items()} if model_type == "gpt2" else config
    get = (DEFAULTS[model_type] | stated).__getitem__
    if model_type == "gpt2":
        hidden, heads, layers = get("n_embd"), get("n_head"), get("n_layer")
        key_value_heads, head_dim, positions = heads, hidden // heads, get("n_positions")
        inner, more = get("n_inner") or 4 * hidden, {"activation": get("activation_function")}
        more["dropout"] = bool(get("resid_pdrop"))
    else:
        hidden, heads, layers = get("hidden_size"), get("num_attention_heads"), get("num_hidden_layers")
        key_value_heads, positions = get("num_key_value_heads") or heads, get("max_position_embeddings")
        head_dim, inner = get("head_dim") or hidden // heads, get("intermediate_size")
        more = {name: bool(get(name)) for name in ("attention_bias", "mlp_bias", "qk_norm")}
        more["z_loss"] = bool(get("z_loss_weight"))
    if hidden % heads and not config.get("head_dim"):
        raise ValueError(f"{where}: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    if heads % key_value_heads:
        raise ValueError(f"{where}: num_attention_heads {heads} is no multiple of {key_value_heads} key-value heads")
    return Shape(
        model_type,
        get("vocab_size"),
        hidden,
        layers,
        heads,
        key_value_heads,
        head_dim,
        inner,
        positions,
        bool(get("tie_word_embeddings")),
        **more,
    )


def adapter_parameters(shape: Shape, rank: int, targets: str | Sequence[str]) -> int:
    """Parameters that LoRA of this rank adds: rank x (inputs + outputs) of each targeted matrix of every layer.

    Args:
        targets: names of modules, or `all-linear` (Hu et al. 2021, LoRA; PEFT's target_modules).

    Raises:
        ValueError: a name that no matrix of a layer has.
    """
    linears = shape.linears()
    names = set(linears) if targets == "all-linear" else {targets} if isinstance(targets, str) else set(targets)

    def ends(module: str, name: str) -> bool:
        return module == name or module.endswith(f".{name}")

    if unknown := sorted(name for name in names if not any(ends(module, name) for module in linears)):
        raise ValueError(f"lora_target_modules: {unknown[0]}: no matrix of a layer; they are {', '.join(linears)}")
    chosen = [size for module, size in linears.items() if any(ends(module, name) for name in names)]
    return shape.num_layers * rank * sum(inputs + outputs for inputs, outputs, _ in chosen)
