"""The training recipes of a folder as jobs to plan: shape, rows, steps. Reads YAML and manifests, loads nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fledge import schema
from fledge.arguments import LIBRARY, STAGES
from fledge.files import read_json
from fledge.recipe import Recipe, load_recipe

from .shape import NotKnown, Shape, adapter_parameters, read_shape


TILE = 64
"""An H100 trained Transformer-1B-Chat 1.19 times as fast with 32,064 entries as with 32,003 (benchmarks/README.md)."""

LORA_TARGETS = "all-linear"
"""What LoRA adapts where a recipe names no modules."""


@dataclass(frozen=True)
class Job:
    """One training stage as far as its costs go."""

    recipe: Recipe
    shape: Shape
    length: int
    """Tokens in a row; of pairs, the most that a side may have."""
    rows_per_step: int
    """Rows, or pairs, per optimizer step over all processes."""
    rows: int | None
    """Rows, or pairs, there are to train on, if known."""
    sources: list[dict[str, Any]]
    """Of the manifest: name, tokens, epochs of each source in one pass; empty before prepare ran."""
    adapters: int | None
    """LoRA's parameters; None if all weights are trained."""
    notes: list[str]

    def get(self, key: str) -> Any:
        """The recipe's value, or the library's default."""
        return self.recipe.values.get(key, schema.load(self.recipe.stage)["properties"].get(key, {}).get("default"))

    @property
    def sides(self) -> int:
        """Sequences in a row: a pair has two."""
        return 2 if self.recipe.stage == "dpo" else 1

    @property
    def total(self) -> int:
        """Parameters in memory, adapters included."""
        return self.shape.total + (self.adapters or 0)

    @property
    def trainable(self) -> int:
        """Parameters that get gradients."""
        return self.shape.total if self.adapters is None else self.adapters

    @property
    def micro_batch(self) -> int:
        """Rows, or pairs, that a process takes at once."""
        return self.get("per_device_train_batch_size")

    @property
    def tokens_per_step(self) -> int:
        """Padding included."""
        return self.rows_per_step * self.sides * self.length

    @property
    def bf16(self) -> bool:
        """Whether matrix products are in bfloat16; `auto`, the default, counts as yes."""
        return self.recipe.values.get("bf16", "auto") in (True, "auto")

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass instead of kept."""
        stated = self.recipe.values.get("activation_checkpointing")
        return bool(self.get("gradient_checkpointing") if stated is None else stated)

    def attention(self, on_gpu: bool) -> str:
        """What `attn_implementation: auto` comes to, as fledge.training.varlen chooses it; sliding windows aside.

        On a CPU, where what varlen keeps depends on the lengths of the documents, what sdpa keeps is planned.
        """
        stated = self.get("attn_implementation")
        if stated != "auto":
            return stated
        packed = self.recipe.stage != "dpo"
        return "varlen" if on_gpu and self.bf16 and packed and not self.shape.dropout else "sdpa"

    @property
    def has_reference(self) -> bool:
        """Whether a frozen second model is in memory; with LoRA it is the same one without its adapters."""
        frozen = self.recipe.stage == "dpo" and self.adapters is None
        return frozen and not self.get("precompute_ref_log_probs")

    @property
    def steps(self) -> int | None:
        """Optimizer steps; None where they follow from rows nobody has counted yet."""
        if self.get("max_steps") > 0:
            return self.get("max_steps")
        if self.rows is None:
            return None
        return math.ceil(self.get("num_train_epochs") * math.ceil(self.rows / self.rows_per_step))

    @property
    def epochs(self) -> float | None:
        """Passes over the rows."""
        if self.rows is None or self.steps is None:
            return None
        return self.steps * self.rows_per_step / self.rows


def read_jobs(path: Path, overrides: Sequence[str] = ()) -> list[Job]:
    """The jobs of a recipe folder, or the one of a recipe file, in the order of the stages.

    Args:
        overrides: `--key value` as on the command line of a stage; for a file only.

    Raises:
        NotKnown: no training recipe there, or one that names a model nobody can know without downloading it.
        ValueError: a mistake in a recipe.
    """
    if path.is_dir():
        if overrides:
            raise ValueError(f"plan: {overrides[0]}: a key belongs to one recipe; name its file instead of {path}")
        recipes = _beside(path)
        chosen = [recipe for recipe in recipes if recipe.stage in LIBRARY]
    else:
        stage = path.stem.partition("_")[0]
        if path.is_file() and stage not in LIBRARY:
            raise NotKnown(f"{path}: a plan is of {', '.join(LIBRARY)} recipes, or of a folder of them")
        chosen = [load_recipe(stage if stage in LIBRARY else "pretrain", path, overrides)]
        recipes = [recipe for recipe in _beside(path.parent) if recipe.path != path] + chosen
    if not chosen:
        raise NotKnown(f"{path}: no {', '.join(LIBRARY)} recipe in it; name a recipe folder or file")
    return [_job(recipe, recipes) for recipe in chosen]


def _beside(folder: Path) -> list[Recipe]:
    order = list(STAGES)
    paths = [path for path in folder.glob("*.yaml") if path.stem.partition("_")[0] in STAGES]
    paths.sort(key=lambda path: (order.index(path.stem.partition("_")[0]), path.stem))
    return [load_recipe(path.stem.partition("_")[0], path) for path in paths]


def _job(recipe: Recipe, recipes: list[Recipe]) -> Job:
    values, notes = recipe.values, []
    shape = _shape(recipe, recipes, notes)
    if recipe.stage == "pretrain" and shape.vocab_size % TILE:
        wider = -(-shape.vocab_size // TILE) * TILE
        notes.append(
            f"a vocabulary that is no multiple of {TILE} is slow on a GPU; model_config.vocab_size: {wider} is not"
        )
    if recipe.stage == "dpo":
        length = values.get("max_length", schema.load("dpo")["properties"]["max_length"]["default"])
        rows_per_step, rows, sources = values["pairs_per_step"], _pairs(Path(values["pairs"]), recipes), []
        if length is None:
            raise NotKnown(f"{recipe.path}: max_length: null: a plan needs the longest pair; write a number")
        notes.append(f"every side of a pair counts as {length:,} tokens, the most there may be")
    else:
        manifest = _manifest(Path(values["prepared"]))
        maker = _maker(values["prepared"], recipes)
        length = maker.values["max_length"] if maker else manifest.get("max_length")
        if length is None:
            raise NotKnown(
                f"{recipe.path}: prepared: {values['prepared']} is not made yet, and no recipe beside this one makes "
                "it; run its prepare stage, so that the length of a row is known"
            )
        known = manifest if manifest.get("max_length") == length else {}
        rows, sources = known.get("train", {}).get("rows"), known.get("train", {}).get("sources", [])
        rows_per_step, rest = divmod(values["tokens_per_step"], length)
        if rest:
            below = rows_per_step * length
            near = " or ".join(f"{value}" for value in (below, below + length) if value)
            raise ValueError(
                f"{recipe.path}: tokens_per_step: {values['tokens_per_step']} is no multiple of the {length} tokens "
                f"of a row; nearest: {near}"
            )
    adapters = None
    if values.get("use_peft"):
        targets = values.get("lora_target_modules") or LORA_TARGETS
        rank = values.get("lora_r") or schema.load(recipe.stage)["properties"].get("lora_r", {}).get("default") or 16
        targets = targets[0] if targets == [LORA_TARGETS] else targets
        adapters = adapter_parameters(shape, rank, targets)
    return Job(recipe, shape, length, rows_per_step, rows, sources, adapters, notes)


def _shape(recipe: Recipe, recipes: list[Recipe], notes: list[str]) -> Shape:
    """Of the model a recipe trains: its own model_config, or that of the stage whose folder it names."""
    values = recipe.values
    if recipe.stage == "pretrain":
        config = dict(values["model_config"])
        if "vocab_size" not in config:
            config["vocab_size"] = _vocabulary(values["tokenizer"], recipes, f"{recipe.path}: tokenizer", notes)
        return read_shape(config, f"{recipe.path}: model_config")
    folder = values["model_name_or_path"]
    maker = _maker(folder, recipes)
    if maker is not None and maker.stage in LIBRARY and maker is not recipe:
        shape = _shape(maker, recipes, notes)
    elif (config := Path(folder) / "config.json").is_file():
        shape = read_shape(read_json(config), str(config))
    else:
        raise NotKnown(
            f"{recipe.path}: model_name_or_path: {folder} is neither a model folder here nor what a recipe beside "
            "this one makes, and a plan downloads nothing; name a folder that holds its config.json"
        )
    if values.get("tokenizer"):
        vocabulary = _vocabulary(values["tokenizer"], recipes, f"{recipe.path}: tokenizer", notes)
        shape = replace(shape, vocab_size=max(shape.vocab_size, vocabulary))
    return shape


def _vocabulary(folder: str, recipes: list[Recipe], where: str, notes: list[str]) -> int:
    """Entries of a tokenizer: those of its file, or what its recipe asks for.

    Raises:
        ValueError: neither is there.
    """
    if (file := Path(folder) / "tokenizer.json").is_file():
        tokenizer = read_json(file)
        model = tokenizer["model"]["vocab"]
        ids = list(model.values()) if isinstance(model, dict) else list(range(len(model)))
        return max([*ids, *(token["id"] for token in tokenizer["added_tokens"])]) + 1
    maker = _maker(folder, recipes)
    if maker is None or not maker.values.get("vocab_size"):
        raise NotKnown(
            f"{where}: {folder} is not made yet and no recipe beside this one states its vocab_size; write "
            "model_config.vocab_size, or run the tokenizer stage"
        )
    notes.append(
        f"the vocabulary is not learnt yet; {maker.path.name} asks for at most {maker.values['vocab_size']:,}"
    )
    return maker.values["vocab_size"]


def _maker(folder: str, recipes: list[Recipe]) -> Recipe | None:
    return next((recipe for recipe in recipes if Path(folder).is_relative_to(recipe.output_dir)), None)


def _manifest(folder: Path) -> dict[str, Any]:
    return read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else {}


def _pairs(folder: Path, recipes: list[Recipe]) -> int | None:
    """Training pairs: those in the file, or what pairs.yaml asks for."""
    if (file := folder / "train.parquet").is_file():
        from pyarrow.parquet import read_metadata

        return read_metadata(file).num_rows
    maker = _maker(str(folder), recipes)
    wanted = maker.values.get("num_pairs") if maker and maker.stage == "pairs" else None
    if not wanted:
        return None
    share = maker.values.get("heldout_ratio", schema.load("pairs")["properties"]["heldout_ratio"]["default"])
    return wanted - round(wanted * share)
