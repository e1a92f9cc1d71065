"""A Llama or Qwen3 as one GGUF file, the format of llama.cpp, and the proof that the file holds this very model.

The format: github.com/ggml-org/ggml, docs/gguf.md. The names of tensors are those of the `gguf` package.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .vocabulary import add_vocabulary


BLOCK = gguf.GGML_QUANT_SIZES[Type.Q8_0][0]
"""Weights of a row that share one scale in Q8_0: 32."""

FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}

LARGEST = {Type.F32: float(np.finfo(np.float32).max), Type.F16: 65504.0, Type.Q8_0: 127 * 65504.0}
"""What a type can hold."""


@dataclass(frozen=True)
class About:
    """What the records of a run say of a model.

    Attributes:
        licence: of the text it was trained on; empty if no record states one.
        temperature: at which it was evaluated; None if it was not.
    """

    name: str
    licence: str = ""
    temperature: float | None = None


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, gguf_type: str, about: About
) -> dict[str, Any]:
    """Write the model into `path`, read it back and compare every weight; only then the file gets its name.

    Args:
        gguf_type: F32, F16 or Q8_0, of the matrices; norms and biases are always F32, as llama.cpp wants them.

    Returns:
        How many tensors were written as which type, and by how much a weight differs at most, by type.

    Raises:
        ValueError: llama.cpp has no such architecture or vocabulary, or a weight is too large for `gguf_type`.
        RuntimeError: the file does not hold the model.
    """
    check(model.config)
    partial = path.with_name(path.name + ".partial")
    try:
        types = _write(model, tokenizer, partial, gguf_type, about)
        differences = compare(model, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return {"tensors": types, "max_weight_difference": differences}


def check(config: PreTrainedConfig) -> None:
    """Raise ValueError unless llama.cpp's Llama or Qwen3 is this architecture."""
    otherwise = "export it with `to: llama`"
    if config.model_type not in ARCHITECTURES:
        known = f"only Llama and Qwen3 can be written, and this is a model of type {config.model_type}"
        raise ValueError(f"to: gguf: {known}; {otherwise}")
    if config.model_type == "qwen3" and (config.attention_bias or config.use_sliding_window):
        known = "llama.cpp's Qwen3 has no attention_bias and no sliding window, and this model has one"
        raise ValueError(f"to: gguf: {known}; {otherwise}")
    rope = config.rope_parameters
    if rope["rope_type"] != "default" or rope.keys() - {"rope_type", "rope_theta"}:
        raise ValueError(f"to: gguf: only the default RoPE can be written, and rope_parameters is {rope}; {otherwise}")
    if config.hidden_act not in ("silu", "swish"):
        raise ValueError(f"to: gguf: hidden_act is {config.hidden_act!r}, and llama.cpp has silu; {otherwise}")


def _write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, gguf_type: str, about: About
) -> dict[str, int]:
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[model.config.model_type]])
    try:
        _add_facts(writer, model.config, about)
        writer.add_file_type(FILE_TYPES[gguf_type])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_vocabulary(writer, tokenizer, model)
        types = {}
        for name, weight in tensors(model):
            types[name] = stored_type(weight, gguf_type)
            size = gguf.quant_shape_to_byte_shape(weight.shape, types[name])
            writer.add_tensor_info(name, weight.shape, np.dtype(np.float32), int(np.prod(size)), types[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, weight in tensors(model):
            writer.write_tensor_data(_stored(name, weight.float().numpy(), types[name]))
    finally:
        writer.close()
    return dict(Counter(its.name for its in types.values()))


def _add_facts(writer: gguf.GGUFWriter, config: PreTrainedConfig, about: About) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(about.name)
    if about.licence:
        writer.add_license_name(about.licence)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def names(model: PreTrainedModel) -> dict[str, str]:
    """What GGUF calls each weight; a tied head is not stored twice."""
    known = gguf.get_tensor_name_map(ARCHITECTURES[model.config.model_type], model.config.num_hidden_layers)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    found = {name: known.get_name(name, (".weight", ".bias")) for name in model.state_dict() if name not in tied}
    assert None not in found.values(), found
    return found


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in GGUF, weight) of all weights, queries and keys of a Llama in llama.cpp's order."""
    weights = model.state_dict()
    for name, stored in names(model).items():
        heads = rotated_heads(name, model.config)
        yield stored, interleave(weights[name], heads) if heads else weights[name]


def rotated_heads(name: str, config: PreTrainedConfig) -> int:
    """How many heads a weight has whose rows llama.cpp wants in another order; 0 if it is none of them."""
    if config.model_type != "llama":  # of Qwen3 llama.cpp rotates the halves, as transformers does
        return 0
    projection = name.split(".")[-2]
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(projection, 0)


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (heads * E, ...) in the order of llama.cpp's RoPE.

    transformers rotates row i of a head with row i + E/2, as in GPT-NeoX; llama.cpp rotates a Llama's neighbours, 2i
    with 2i + 1, as in the RoPE paper (Su et al. 2021).
    """
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def deinterleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `interleave`."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def stored_type(weight: torch.Tensor, gguf_type: str) -> Type:
    """How a weight is stored: Q8_0 needs rows of whole blocks, and other rows are F16, as in llama.cpp's own tools."""
    if weight.dim() == 1:
        return Type.F32
    return Type.F16 if gguf_type == "Q8_0" and weight.shape[-1] % BLOCK else Type[gguf_type]


def _stored(name: str, weight: np.ndarray, type: Type) -> np.ndarray:
    if not (largest := float(np.abs(weight).max())) <= LARGEST[type]:
        raise ValueError(f"gguf_type: {name} holds {largest}, which {type.name} cannot hold; write `gguf_type: F32`")
    return gguf.quantize(weight, type)


def compare(model: PreTrainedModel, path: Path) -> dict[str, float]:
    """The largest difference of a weight read from `path` to the model's, by the type it is stored as.

    Raises:
        RuntimeError: a tensor is missing, or differs by more than its type explains.
    """
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    weights, largest = model.state_dict(), dict[str, float]()
    for name, stored in names(model).items():
        if stored not in held:
            raise RuntimeError(f"{path} lacks {stored}")
        source, type = weights[name].float(), held[stored].tensor_type
        back = torch.from_numpy(np.array(gguf.dequantize(held[stored].data, type), np.float32))
        heads = rotated_heads(name, model.config)
        difference = ((deinterleave(back, heads) if heads else back) - source).abs()
        if not (difference <= tolerance(source, type)).all():
            raise RuntimeError(f"{path}: {stored} differs from the model by {difference.max()}")
        largest[type.name] = max(largest.get(type.name, 0.0), difference.max().item())
    return largest


def tolerance(source: torch.Tensor, type: Type) -> torch.Tensor:
    """By how much each weight may differ once it is stored: half a step of the type, and no more.

    F32: none. F16 has 11 significant bits, and steps of 2^-24 below 2^-14. Q8_0 stores whole numbers up to 127 of a
    scale d = max / 127 of each 32 weights: half a step of d, and d itself is an F16.
    """
    if type == Type.F32:
        return torch.zeros(())
    if type == Type.F16:
        return _f16_rounding(source.abs())
    scale = source.unflatten(-1, (-1, BLOCK)).abs().amax(-1, keepdim=True) / 127
    half = scale * (0.5 + 1e-5)  # the quotient was rounded in float32
    return (half + 127 * _f16_rounding(scale)).expand(*scale.shape[:-1], BLOCK).flatten(-2)


def _f16_rounding(size: torch.Tensor) -> torch.Tensor:
    return torch.clamp(size * 2.0**-11, min=2.0**-25)
