"""What a training stage starts from, as digests: a resumed run has to start from the same."""

import re
from pathlib import Path
from typing import Any

from fledge.files import digest
from fledge.recipe import Recipe


UNIMPORTANT = re.compile(
    r"(logging|save|eval|hub|dataloader|report|push|per_device|disable|include|log|torch_compile|auto_find)(_|$).*"
    r"|output_dir|run_name|hang_timeout|loss_spike|use_cpu|gradient_accumulation_steps|project|trackio.*"
)
"""Keys that may change before a resumption: they move no weight, or, loss_spike, a stop asks for it."""

READ = {
    "prepared": ("manifest.json",),
    "pairs": ("train.parquet",),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    "model_name_or_path": ("*.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"),
}
"""Recipe keys that name a folder, and the files in it that decide what is trained; a manifest holds row hashes."""


def origin(recipe: Recipe, now: dict[str, Any]) -> dict[str, Any]:
    """What `checkpoint/COMPLETE.json` keeps to compare with: the recipe's values that move weights, digests of inputs.

    Args:
        now: the resolved recipe, key -> {"value", "from"}.
    """
    values = {key: its["value"] for key, its in now.items() if not UNIMPORTANT.fullmatch(key)}
    inputs = {
        f"{key}: {path.name}": digest(path)
        for key, patterns in READ.items()
        if isinstance(folder := recipe.values.get(key), str)
        for pattern in patterns
        for path in sorted(Path(folder).glob(pattern))
    }
    return {"recipe": values, "inputs": inputs}


def refuse_changed(checkpoint: Path, before: dict[str, Any], now: dict[str, Any], allowed: tuple[str, ...]) -> None:
    """Raise ValueError if a checkpoint was made from something else than what this run starts from.

    Args:
        before: what COMPLETE.json says of it; `recipe` and `inputs` as from `origin`.
        allowed: keys that `--allow-change` states.
    """
    changed = [
        f"{key} was {before['recipe'].get(key)!r} and is {now['recipe'].get(key)!r}"
        for key in sorted({*before["recipe"], *now["recipe"]} - {*allowed})
        if before["recipe"].get(key) != now["recipe"].get(key)
    ]
    changed += [
        f"{name} has changed"
        for name in sorted({*before["inputs"], *now["inputs"]})
        if name.partition(":")[0] not in allowed and before["inputs"].get(name) != now["inputs"].get(name)
    ]
    if changed:
        raise ValueError(
            f"{checkpoint} was made of something else: {'; '.join(changed)}; take another output_dir, or say that it "
            "is meant so: --allow-change KEY"
        )
