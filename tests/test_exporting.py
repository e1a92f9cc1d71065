"""The GGUF file: every weight, the vocabulary, what llama.cpp has to know; the Modelfile; the folder with code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from conftest import TEMPLATES, TEXTS, recipe
from gguf import GGUFReader, TokenType
from tokenizers import Regex, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fledge.exporting.gguf import About, check, compare, tolerance, write_gguf
from fledge.exporting.modelfile import go_template, modelfile
from fledge.exporting.vocabulary import pre_tokenizer
from fledge.files import read_json
from fledge.model.plain import as_plain
from fledge.publishing.outbox import Outbox, Parcel
from fledge.stages import export


ABOUT = About("bird", "Apache-2.0", 0.8)
ROTATED = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
"""Where llama.cpp wants the 8 rows of a head: the two halves, which transformers rotates together, alternate."""


@pytest.fixture
def llama(make_model: Callable) -> LlamaForCausalLM:
    return as_plain(make_model())


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def stored(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize("keys", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_f32_holds_every_weight_to_the_bit(
    keys: dict[str, bool], make_model: Callable, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = as_plain(make_model(**keys))
    found = write_gguf(model, tokenizer, tmp_path / "model.gguf", "F32", ABOUT)
    held, weights = stored(tmp_path / "model.gguf"), model.state_dict()

    assert found == {"tensors": {"F32": len(held)}, "max_weight_difference": {"F32": 0.0}}
    # Written out by hand: what is stored is compared with the model's without the code under test.
    for name, heads in (("q", 4), ("k", 2)):
        own = weights[f"model.layers.1.self_attn.{name}_proj.weight"]
        turned = torch.cat([head[ROTATED] for head in own.chunk(heads)])
        assert not torch.equal(turned, own)
        assert np.array_equal(held[f"blk.1.attn_{name}.weight"], turned.numpy())
    if keys.get("attention_bias"):
        own = weights["model.layers.0.self_attn.k_proj.bias"]
        assert np.array_equal(held["blk.0.attn_k.bias"], torch.cat([it[ROTATED] for it in own.chunk(2)]).numpy())
    assert np.array_equal(held["blk.0.attn_v.weight"], weights["model.layers.0.self_attn.v_proj.weight"].numpy())
    assert np.array_equal(held["blk.1.ffn_down.weight"], weights["model.layers.1.mlp.down_proj.weight"].numpy())
    assert np.array_equal(held["token_embd.weight"], weights["model.embed_tokens.weight"].numpy())
    assert ("output.weight" in held) == (not keys.get("tie_word_embeddings"))


# Of a Qwen3's file its reader takes no head_dim, and so has 128.
@pytest.mark.parametrize("keys", [{}, {"qk_norm": True, "head_dim": 128}], ids=["llama", "qwen3"])
def test_another_reader_finds_the_same_model(
    keys: dict[str, Any], make_model: Callable, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """transformers reads GGUF too, by code of its own."""
    rope = {"rope_type": "default", "rope_theta": 100.0}
    model = as_plain(make_model(rope_parameters=rope, rms_norm_eps=1e-3, **keys)).eval()
    with torch.no_grad():
        for layer in model.model.layers if keys else ():
            layer.self_attn.k_norm.weight.normal_()
    write_gguf(model, tokenizer, tmp_path / "model.gguf", "F32", ABOUT)
    assert fields(tmp_path / "model.gguf")["general.architecture"] == ("qwen3" if keys else "llama")

    file = {"gguf_file": "model.gguf", "trust_remote_code": False}
    other = AutoModelForCausalLM.from_pretrained(tmp_path, **file).eval()
    ids = torch.arange(40).unsqueeze(0)
    assert torch.equal(other(ids).logits, model(ids).logits)
    words = AutoTokenizer.from_pretrained(tmp_path, **file)
    assert [words(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert words.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("type", ["F16", "Q8_0"])
def test_a_smaller_type_differs_by_half_a_step_at_most(
    type: str, llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    found = write_gguf(llama, tokenizer, tmp_path / "model.gguf", type, ABOUT)

    largest = max(weight.abs().max().item() for weight in llama.state_dict().values())
    assert 0 < found["max_weight_difference"][type] <= largest * (2**-11 if type == "F16" else 0.6 / 127)
    assert found["max_weight_difference"]["F32"] == 0.0
    # Two layers of 9 tensors, embedding, head, and the last norm. Rows of 48 are no whole blocks of 32.
    assert found["tensors"] == ({"F16": 16, "F32": 5} if type == "F16" else {"Q8_0": 14, "F16": 2, "F32": 5})


def test_a_weight_that_is_not_the_models_is_found(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    write_gguf(llama, tokenizer, tmp_path / "model.gguf", "F16", ABOUT)
    assert compare(llama, tmp_path / "model.gguf")
    with torch.no_grad():
        llama.model.layers[1].self_attn.k_proj.weight[3, 5] *= 1.01

    with pytest.raises(RuntimeError, match=r"blk\.1\.attn_k\.weight differs"):
        compare(llama, tmp_path / "model.gguf")


def test_the_tolerance_is_no_looser_than_the_type() -> None:
    source = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    for type in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0):
        back = torch.from_numpy(gguf.dequantize(gguf.quantize(source.numpy(), type), type).astype(np.float32))
        allowed, difference = tolerance(source, type), (back - source).abs()
        assert (difference <= allowed).all()
        assert (difference > 0.5 * allowed).any()


def test_what_is_too_large_for_a_type_is_refused_and_nothing_is_left(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with torch.no_grad():
        llama.lm_head.weight[7, 7] = 70000.0

    with pytest.raises(
        ValueError, match=r"output\.weight holds 70000\.0, which F16 cannot hold; write `gguf_type: F32`"
    ):
        write_gguf(llama, tokenizer, tmp_path / "model.gguf", "F16", ABOUT)
    assert not list(tmp_path.iterdir())


def test_llama_cpp_is_told_everything(
    make_model: Callable, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rope = {"rope_type": "default", "rope_theta": 100.0}
    model = as_plain(make_model(vocab_size=323, rope_parameters=rope, rms_norm_eps=1e-5, head_dim=16))
    write_gguf(model, tokenizer, tmp_path / "model.gguf", "F16", ABOUT)
    found = fields(tmp_path / "model.gguf")

    assert {name.removeprefix("llama."): value for name, value in found.items() if name.startswith("llama.")} == {
        "vocab_size": 323,
        "context_length": 256,
        "embedding_length": 32,
        "block_count": 2,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "rope.dimension_count": 16,
        "rope.freq_base": 100.0,
    }
    general = ("architecture", "type", "name", "license.name", "file_type", "quantization_version")
    assert [found[f"general.{name}"] for name in general] == ["llama", "model", "bird", "Apache-2.0", 1, 2]
    assert found["tokenizer.chat_template"] == tokenizer.chat_template


def test_the_vocabulary_is_the_tokenizers(
    make_model: Callable, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    write_gguf(as_plain(make_model(vocab_size=323)), tokenizer, tmp_path / "model.gguf", "F16", ABOUT)
    found = {name.removeprefix("tokenizer.ggml."): value for name, value in fields(tmp_path / "model.gguf").items()}

    assert found["tokens"] == [*tokenizer.convert_ids_to_tokens(range(320)), "[PAD320]", "[PAD321]", "[PAD322]"]
    special = len(tokenizer.all_special_tokens)
    types = [TokenType.CONTROL] * special + [TokenType.NORMAL] * (320 - special) + [TokenType.UNUSED] * 3
    assert found["token_type"] == types
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert found["merges"] == [f"{left} {right}" for left, right in merges] and len(merges) > 50
    ids = [found[f"{name}_token_id"] for name in ("bos", "eos", "padding")]
    assert ids == [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert (found["model"], found["pre"]) == ("gpt2", "gpt-2")
    assert (found["add_bos_token"], found["add_eos_token"]) == (False, False)
    assert "eot_token_id" not in found


def test_a_stop_token_beside_eos_ends_a_turn(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    llama.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, 4])
    write_gguf(llama, tokenizer, tmp_path / "model.gguf", "F16", ABOUT)
    assert fields(tmp_path / "model.gguf")["tokenizer.ggml.eot_token_id"] == 4

    llama.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, 4, 5])
    with pytest.raises(ValueError, match="at most two stop tokens"):
        write_gguf(llama, tokenizer, tmp_path / "model.gguf", "F16", ABOUT)


def test_characters_apart_need_no_splitting(tokenizer: PreTrainedTokenizerBase) -> None:
    """The ids of isolate_characters are those of merging whole texts, if no merge joins two characters."""
    backend = tokenizer.backend_tokenizer
    apart = [pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(apart)
    stated = json.loads(backend.to_str())
    # Learnt from words, some of these merges join characters.
    with pytest.raises(ValueError, match="splits text by"):
        pre_tokenizer(stated)

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    within = [pair for pair in stated["model"]["merges"] if 0x80 <= byte_of[pair[1][0]] < 0xC0]
    kept = {"".join(pair) for pair in within}
    within = [pair for pair in within if all(len(half) == 1 or half in kept for half in pair)]
    assert 10 < len(within) < len(stated["model"]["merges"])
    stated["model"]["merges"] = within
    assert pre_tokenizer(stated) == "gpt-2"
    split = type(backend).from_str(json.dumps(stated))
    words = type(backend).from_str(
        json.dumps(
            stated
            | {
                "pre_tokenizer": {
                    "type": "ByteLevel",
                    "use_regex": True,
                    "add_prefix_space": False,
                    "trim_offsets": True,
                }
            }
        )
    )
    for text in TEXTS:
        assert split.encode(text).ids == words.encode(text).ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFC"}}, "not a plain byte-level BPE"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits text by"),
        ({"pre_tokenizer": None}, "splits text by null"),
        ({"model": {"byte_fallback": True}}, "not a plain byte-level BPE"),
    ],
)
def test_a_tokenizer_without_a_name_is_refused(
    change: dict[str, Any], message: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    stated = json.loads(tokenizer.backend_tokenizer.to_str())
    change = {key: {**stated[key], **it} if key == "model" else it for key, it in change.items()}
    with pytest.raises(ValueError, match=message):
        pre_tokenizer(stated | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "of type mistral; export it with `to: llama`"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "only the default RoPE"),
    ],
)
def test_an_architecture_that_llama_cpp_has_not_is_refused(change: dict[str, Any], message: str) -> None:
    config = LlamaConfig()
    check(config)
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        check(config)


def test_the_modelfile_says_what_the_records_say(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    lines = modelfile(llama, tokenizer, "model.gguf", ABOUT).splitlines()

    assert [line for line in lines if not line.startswith(("#", "TEMPLATE"))] == [
        "FROM ./model.gguf",
        'PARAMETER stop "<|end|>"',
        "PARAMETER num_ctx 256",
        "PARAMETER temperature 0.8",
        "PARAMETER top_k 0",
        "PARAMETER top_p 1.0",
        "PARAMETER min_p 0.0",
        "PARAMETER repeat_penalty 1.0",
        'LICENSE """Apache-2.0"""',
    ]
    llama.generation_config = GenerationConfig(do_sample=True, temperature=0.5, top_k=7, eos_token_id=2)
    drawn = modelfile(llama, tokenizer, "model.gguf", ABOUT)
    assert "PARAMETER temperature 0.5\nPARAMETER top_k 7\n" in drawn
    llama.generation_config = GenerationConfig(eos_token_id=2)
    assert "PARAMETER temperature 0.0\n" in modelfile(llama, tokenizer, "model.gguf", About("bird"))


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_a_template_is_said_in_go_or_not_at_all(
    path: Path, llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    template = go_template(tokenizer)
    text = modelfile(llama, tokenizer, "model.gguf", ABOUT)

    # One adds a system prompt where there is none, and one folds the system's words into the user's.
    assert (template is None) == (path.stem in ("prem-1b", "transformer-1b-chat"))
    assert ('TEMPLATE """' in text) == (template is not None)
    if template is None:
        assert "add a TEMPLATE of Go here" in text
        return
    for roles in (["user"], ["system", "user", "assistant", "user"], ["user", "assistant"] * 3):
        messages = [{"role": role, "content": f" {role}'s words\n"} for role in roles]
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert run_go(template, messages) == wanted


def run_go(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template would write: a loop over the messages around a chain of `if eq .Role`."""
    begin, _, rest = template.partition("{{ range .Messages }}{{ if ")
    body, _, end = rest.partition("{{ end }}{{ end }}")
    branches = dict(branch.split(" }}", 1) for branch in body.split("{{ else if "))
    turns = (branches[f'eq .Role "{its["role"]}"'].replace("{{ .Content }}", its["content"]) for its in messages)
    return begin + "".join(turns) + end


@pytest.fixture
def model_folder(make_model: Callable, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Callable[..., Path]:
    def make(**keys: Any) -> Path:
        model = make_model(**keys)
        model.save_pretrained(tmp_path / "runs" / "bird" / "dpo")
        tokenizer.save_pretrained(tmp_path / "runs" / "bird" / "dpo")
        return tmp_path / "runs" / "bird" / "dpo"

    return make


def test_the_stage_writes_the_file_and_says_by_how_much_it_differs(
    model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_folder()
    (folder / "recipe.json").write_text("{}")
    (folder.parent / "corpus").mkdir()
    corpus = {"stage": "corpus", "results": {"source": {"package": "poems", "version": "1.2", "license": "MIT"}}}
    (folder.parent / "corpus" / "summary.json").write_text(json.dumps(corpus))
    export.main(recipe(tmp_path, "export", model_name_or_path=folder, to="gguf"))

    results = read_json(tmp_path / "export" / "summary.json")["results"]
    assert results["tensors"] == {"F16": 16, "F32": 5} and 0 < results["max_weight_difference"]["F16"] < 1e-3
    assert "5 tensors as F32, no weight differs by more than 0\n" in capsys.readouterr().out
    found = fields(tmp_path / "export" / "model.gguf")
    assert found["general.name"] == "bird"
    assert found["general.license.name"] == "of the text it was trained on: poems 1.2: MIT"
    assert (tmp_path / "export" / "Modelfile").read_text(encoding="utf-8").startswith("# bird: ollama create bird ")


@pytest.mark.parametrize("keys", [{}, {"tie_word_embeddings": True, "head_dim": 16, "attention_bias": True}])
def test_with_qk_norm_it_is_a_qwen3_to_the_bit(
    keys: dict[str, Any], model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = model_folder(qk_norm=True, rope_parameters={"rope_type": "default", "rope_theta": 100.0}, **keys)
    export.main(recipe(tmp_path, "export", model_name_or_path=folder))

    results = read_json(tmp_path / "export" / "summary.json")["results"]
    assert results == {"architecture": "Qwen3ForCausalLM", "max_logit_difference": 0.0}
    told = read_json(tmp_path / "export" / "config.json")
    assert (told["model_type"], told["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])
    assert not {"qk_norm", "mlp_bias", "auto_map"} & told.keys()
    Outbox(tmp_path).put(folder, parcel := Parcel("bird/egg", "main"))  # and as one it goes to the hub
    assert read_json(Outbox(tmp_path).files_of(parcel) / "config.json") == told
    if keys:
        with pytest.raises(ValueError, match="Qwen3 has no attention_bias"):
            export.main(recipe(tmp_path, "export", model_name_or_path=folder, to="gguf"))


def test_remote_code_keeps_the_architecture_and_brings_its_code(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = model_folder(qk_norm=True, mlp_bias=True)
    with pytest.raises(ValueError, match=r"neither Llama nor Qwen3 has both.*`to: remote-code`"):
        export.main(recipe(tmp_path, "export", model_name_or_path=folder, to="gguf"))
    export.main(recipe(tmp_path, "export", model_name_or_path=folder, to="remote-code"))

    results = read_json(tmp_path / "export" / "summary.json")["results"]
    assert results == {"architecture": "FledgeForCausalLM", "max_logit_difference": 0.0}
    assert (
        read_json(tmp_path / "export" / "config.json")["auto_map"]["AutoConfig"] == "configuration_fledge.FledgeConfig"
    )
    own = Path(export.__file__).parents[1] / "model"
    for name in ("configuration_fledge.py", "modeling_fledge.py"):
        assert (tmp_path / "export" / name).read_bytes() == (own / name).read_bytes()


def test_what_transformers_has_needs_no_remote_code(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    for part in (llama, tokenizer):
        part.save_pretrained(tmp_path / "given")
    with pytest.raises(ValueError, match="is a LlamaForCausalLM, whose code is in transformers"):
        export.main(recipe(tmp_path, "export", model_name_or_path=tmp_path / "given", to="remote-code"))
