"""What a recipe points to: folders of packed rows, folders of preference pairs, and who trains on them."""

from dataclasses import dataclass, field
from pathlib import Path

from fledge.data.prepared import MANIFEST
from fledge.files import read_json
from fledge.recipe import Recipe, load_recipe


KINDS = ("prepare", "pretrain", "sft", "dpo")
"""Stages whose recipes name packed rows or pairs."""


@dataclass(frozen=True)
class Subject:
    """One folder to look into."""

    name: str
    folder: Path
    tokenizer: Path
    trainer: Recipe | None = None
    """The recipe that trains on it, if one is known."""
    siblings: list[Recipe] = field(default_factory=list)
    """The recipes beside it: one of them may make the model that the trainer starts from."""

    @property
    def is_pairs(self) -> bool:
        """Whether it holds preference pairs instead of packed rows."""
        return self.trainer is not None and self.trainer.stage == "dpo"

    @property
    def is_there(self) -> bool:
        """Whether the stage that writes it has finished."""
        return (self.folder / ("train.parquet" if self.is_pairs else MANIFEST)).is_file()

    def has(self, split: str) -> bool:
        """Whether there is a training or, for `eval`, a held-out part."""
        if split == "train":
            return True
        if self.is_pairs:
            return (self.folder / "heldout.parquet").is_file()
        return split in read_json(self.folder / MANIFEST)


def find(path: Path) -> tuple[list[Subject], list[Subject]]:
    """The subjects of a recipe file, of a recipe folder, or of a prepared folder: those to read, those not made yet.

    Raises:
        ValueError: nothing there to look into, with what to run or to name instead.
    """
    if (path / MANIFEST).is_file():
        return [Subject(path.name, path, _recorded_tokenizer(path))], []
    if path.is_dir():
        recipes = _recipes(path)
        subjects = _of_folder(recipes)
        if not subjects:
            raise ValueError(f"{path}: no prepare or dpo recipe and no {MANIFEST} in it; name a recipe folder or file")
    else:
        stage = path.stem.partition("_")[0]
        if path.suffix == ".yaml" and stage not in KINDS:
            raise ValueError(f"{path}: inspect looks at {', '.join(KINDS)} recipes, and at folders of them")
        recipe = load_recipe(stage if stage in KINDS else KINDS[0], path)
        subjects = [_subject(recipe, _recipes(path.parent))]
    there = [subject for subject in subjects if subject.is_there]
    if not there:
        missing = ", ".join(str(subject.folder) for subject in subjects)
        raise ValueError(f"{path}: nothing made yet in {missing}; run `fledge run {_folder_of(path)}` first")
    return there, [subject for subject in subjects if not subject.is_there]


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _recipes(folder: Path) -> list[Recipe]:
    paths = sorted(path for path in folder.glob("*.yaml") if path.stem.partition("_")[0] in KINDS)
    return [load_recipe(path.stem.partition("_")[0], path) for path in paths]


def _of_folder(recipes: list[Recipe]) -> list[Subject]:
    """Every prepared folder and every folder of pairs, each once."""
    wanted = sorted((r for r in recipes if r.stage in ("prepare", "dpo")), key=lambda r: KINDS.index(r.stage))
    return list({subject.folder: subject for subject in (_subject(recipe, recipes) for recipe in wanted)}.values())


def _subject(recipe: Recipe, siblings: list[Recipe]) -> Subject:
    values = recipe.values
    match recipe.stage:
        case "prepare":
            trainers = (r for r in siblings if Path(r.values.get("prepared", "")) == recipe.output_dir)
            return Subject(recipe.name, recipe.output_dir, Path(values["tokenizer"]), next(trainers, None), siblings)
        case "pretrain":
            return Subject(recipe.name, Path(values["prepared"]), Path(values["tokenizer"]), recipe, siblings)
        case "sft":
            folder = Path(values["prepared"])
            return Subject(recipe.name, folder, _recorded_tokenizer(folder), recipe, siblings)
        case _:
            return Subject(recipe.name, Path(values["pairs"]), _model_tokenizer(recipe, siblings), recipe, siblings)


def _recorded_tokenizer(prepared: Path) -> Path:
    """The tokenizer that prepare says it used. A folder that is not made yet has none to read, and none is needed."""
    recorded = prepared / "recipe.json"
    if not recorded.is_file():
        return prepared
    return Path(read_json(recorded)["tokenizer"]["value"])


def _model_tokenizer(recipe: Recipe, siblings: list[Recipe]) -> Path:
    """The tokenizer inside the model a dpo recipe starts from or, before that is trained, the one it will get."""
    model = Path(recipe.values["model_name_or_path"])
    if (model / "tokenizer_config.json").is_file():
        return model
    maker = next((r for r in siblings if r is not recipe and r.output_dir == model), None)
    if maker is None:
        return model
    return Path(maker.values["tokenizer"]) if "tokenizer" in maker.values else _model_tokenizer(maker, siblings)
