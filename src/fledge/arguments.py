"""The recipe keys that are fledge's own, one plain dataclass a stage; those of the stages that make data are beside.

Training stages take the keys of a Hugging Face dataclass besides these (`LIBRARY` names it), with the meaning they
have there. This module imports nothing heavy: the generated schema is checked against it without importing torch.
"""

from dataclasses import dataclass
from typing import Any, Literal

from fledge.data_arguments import (
    CorpusArguments,
    DatasetEntry,
    PairsArguments,
    PrepareArguments,
    TokenizerArguments,
    key,
)


__all__ = [
    "LIBRARY",
    "STAGES",
    "CorpusArguments",
    "DatasetEntry",
    "DpoArguments",
    "EvaluateArguments",
    "ExportArguments",
    "PairsArguments",
    "PrepareArguments",
    "PretrainArguments",
    "SftArguments",
    "TaskEntry",
    "TokenizerArguments",
    "TrainingKeys",
    "key",
]


@dataclass(kw_only=True)
class TrainingKeys:
    """Keys that pretrain.yaml, sft.yaml and dpo.yaml share."""

    decay_ratio: float | None = key(
        "Share of the steps over which warmup_stable_decay brings the learning rate down.", None, minimum=0, maximum=1
    )
    muon_learning_rate: float | None = key(
        "Train the hidden matrices with Muon at this rate; embeddings, head and norms stay with `optim`.",
        None,
        minimum=0,
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "varlen"] = key(
        "Attention while training. auto: varlen, which works within documents only, and sdpa where a GPU is to train "
        "in float32 or with dropout, or the model has a sliding window.",
        "auto",
    )
    loss_spike: Literal["log", "skip", "stop"] = key(
        "What to do about a step whose loss lies six standard deviations above the last 128: say so, leave its update "
        "out, or end the run. Under ZeRO, which updates earlier, only log and stop.",
        "log",
    )
    hang_timeout: float = key(
        "Seconds that a batch, a save or a held-out batch may take, compiling included, before the run ends and says "
        "where each process was.",
        1800.0,
        minimum=1,
    )
    hub_timeout: float = key(
        "With push_to_hub: seconds that the end of a stage waits for the hub; what has not arrived waits on, beside "
        "the run.",
        600.0,
        minimum=0,
    )


@dataclass(kw_only=True)
class TuningKeys(TrainingKeys):
    """Keys that sft.yaml and dpo.yaml share; those of LoRA are named as in trl.ModelConfig."""

    use_peft: bool = key(
        "Train a LoRA adapter beside the model instead of its own weights; later stages take its folder, and export "
        "merges it.",
        False,
    )
    lora_r: int = key("Rank of the adapter.", 16, minimum=1)
    lora_alpha: int = key("The adapter's output is multiplied by lora_alpha / lora_r.", 32, minimum=1)
    lora_dropout: float = key("Dropout before the adapter, while fine-tuning.", 0.05, minimum=0, maximum=1)
    lora_target_modules: list[str] = key(
        "Linear layers that get an adapter, by their last names, as in [q_proj, v_proj]; [all-linear] is all of them "
        "but the head.",
        ["all-linear"],
    )


@dataclass(kw_only=True)
class PretrainArguments(TrainingKeys):
    """Keys of pretrain.yaml beside those of transformers.TrainingArguments."""

    model_config: dict[str, Any] = key(
        "Keys of the configuration class of `model_type`, FledgeConfig if that is left out; special tokens come from "
        "the tokenizer, and `vocab_size` too where it is not stated."
    )
    tokenizer: str = key("Folder of the tokenizer.")
    prepared: str = key("Folder written by prepare.")
    tokens_per_step: int = key(
        "Tokens per optimizer step over all processes; accumulation follows from it.", minimum=1
    )


@dataclass(kw_only=True)
class SftArguments(TuningKeys):
    """Keys of sft.yaml beside those of trl.SFTConfig."""

    model_name_or_path: str = key("Folder of the model to tune, its tokenizer inside; or of an adapter.")
    prepared: str = key("Folder written by prepare from conversations.")
    tokens_per_step: int = key(
        "Tokens per optimizer step over all processes; accumulation follows from it.", minimum=1
    )
    tokenizer: str | None = key(
        "Folder of a tokenizer that replaces the model's: the same tokens by the same ids, and more, such as those of "
        "a chat template that pretraining did not know. The rows of the new tokens begin at the mean of the others.",
        None,
    )


@dataclass(kw_only=True)
class DpoArguments(TuningKeys):
    """Keys of dpo.yaml beside those of trl.DPOConfig."""

    model_name_or_path: str = key("Folder of the model to align; also the frozen reference.")
    pairs: str = key("Folder with train.parquet, written by pairs or by a corpus.")
    pairs_per_step: int = key("Pairs per optimizer step over all processes; accumulation follows from it.", minimum=1)
    overlong: Literal["truncate", "fail"] = key(
        "A pair longer than max_length. truncate: its end is cut, the stop token with it, and it is counted; fail: "
        "refuse it.",
        "fail",
    )


@dataclass(kw_only=True)
class TaskEntry:
    """One entry of `tasks:`, a task or group of lm-evaluation-harness."""

    name: str = key("The task's name, as in hellaswag; with include_path, the `task` of one of the folder's files.")
    num_fewshot: int | None = key("Examples before each question; as the task says if left out.", None, minimum=0)
    limit: int | None = key("Questions to ask, the first of the task; all of them if left out.", None, minimum=1)
    include_path: str | None = key(
        "A folder below the working directory with tasks of your own, plain YAML without !function.", None
    )
    path: str | None = key(
        "With include_path: the rows of the task, a .parquet or .jsonl file below the working directory.", None
    )


@dataclass(kw_only=True)
class EvaluateArguments:
    """Keys of evaluate.yaml. What is measured follows from the held-out rows that are named; one kind at least is."""

    models: dict[str, str] = key("What to compare: a short name and a model folder for each.")
    output_dir: str = key("Where the figures and the generated answers go.")
    corpus: str | None = key(
        "The corpus that `requests` are from: how a base model is asked, and a judge if it has one.", None
    )
    heldout_documents: list[DatasetEntry] = key(
        "Held-out text for bits per character and per byte, loss and perplexity, by source.", []
    )
    heldout_chats: list[DatasetEntry] = key("Held-out conversations, for bits per character of the answers.", [])
    requests: list[DatasetEntry] = key("Held-out requests to answer; needs `corpus`.", [])
    pairs: str | None = key("Folder with heldout.parquet, for preference accuracy; needs `reference`.", None)
    reference: str | None = key("Name in `models` of the model that preference accuracy is measured against.", None)
    train_documents: list[DatasetEntry] = key(
        "Text the models were trained on: a trigram learns from it, and a judge looks for copies in it.", []
    )
    choices: list[DatasetEntry] = key(
        "Held-out multiple choices: files with `prompt`, `choices`, `answer` (an index) and `form` columns.", []
    )
    tasks: list[TaskEntry] = key("Tasks of lm-evaluation-harness, asked as plain text.", [])
    checkpoints: bool = key(
        "Also measure the likelihood of heldout_documents under every whole checkpoint in the folders of `models`.",
        False,
    )
    base_models: list[str] = key(
        "Names in `models` that know no chat: they are given the beginning of a document.", []
    )
    temperature: float = key("Sampling temperature.", 0.8, exclusiveMinimum=0)
    max_new_tokens: int = key("Longest answer, in tokens.", 128, minimum=1)
    batch_size: int = key("Answers sampled at once.", 256, minimum=1)
    seed: int = key("Seed of the sampling and of the bootstrap.", 0, minimum=0)


@dataclass(kw_only=True)
class ExportArguments:
    """Keys of export.yaml."""

    model_name_or_path: str = key("Folder of the model to export.")
    output_dir: str = key("Where it goes.")
    to: Literal["llama", "gguf", "remote-code"] = key(
        "llama: a folder that plain transformers loads, of Llama, with qk_norm of Qwen3, or of the architecture of "
        "model_config; gguf: one file for llama.cpp, with a Modelfile for Ollama; remote-code: a folder of fledge's "
        "own architecture with its code inside, to train on where fledge is not.",
        "llama",
    )
    gguf_type: Literal["F32", "F16", "Q8_0"] = key(
        "What `to: gguf` stores matrices as: 4, 2 or 1.0625 bytes a weight; norms and biases are always F32.",
        "F16",
    )


STAGES: dict[str, type] = {
    "corpus": CorpusArguments,
    "tokenizer": TokenizerArguments,
    "prepare": PrepareArguments,
    "pretrain": PretrainArguments,
    "sft": SftArguments,
    "pairs": PairsArguments,
    "dpo": DpoArguments,
    "evaluate": EvaluateArguments,
    "export": ExportArguments,
}
"""Every stage in the order of the chain, with the dataclass of its own keys."""

LIBRARY: dict[str, str] = {
    "pretrain": "transformers.TrainingArguments",
    "sft": "trl.SFTConfig",
    "dpo": "trl.DPOConfig",
}
"""The Hugging Face dataclass whose keys a stage takes as well."""
