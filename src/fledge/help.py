"""What `fledge --help` and `fledge STAGE --help` print."""

from dataclasses import fields
from textwrap import fill


def overview(stages: dict[str, str], others: dict[str, str]) -> str:
    """What `fledge --help` prints.

    Args:
        stages: each with what it does, in order; `others` are the commands besides.
    """

    def table(commands: dict[str, str]) -> str:
        return "\n".join(f"  {name:<10} {text}" for name, text in commands.items())

    return f"""fledge raises a small language model.

  fledge STAGE RECIPE.yaml [--key value ...]
  fledge run RECIPE_FOLDER [--on LAYOUT] [--only STAGE] [--from STAGE] [--smoke]
  fledge launch RECIPE --on LAYOUT [--via accelerate|slurm|ray] [--nodes N] [--key value ...]
  accelerate launch --config_file LAYOUT.yaml -m fledge STAGE RECIPE.yaml [--key value ...]

Stages, in order:
{table(stages)}

Besides:
{table(others)}

fledge COMMAND --help says what a command takes; fledge --version, which fledge this is."""


def of_stage(stage: str, about: str) -> str:
    """What `fledge STAGE --help` prints: fledge's own keys with their meaning, the library's by name."""
    from fledge import arguments, schema
    from fledge.schema.check import expected

    keys = schema.load(stage)
    required = set(keys["required"])
    own = [field.name for field in fields(arguments.STAGES[stage])]
    own += sorted(required.difference(own))
    lines = [f"fledge {stage} RECIPE.yaml [--key value ...]: {about}", "", "Keys of the recipe:"]
    for name in own:
        key = keys["properties"][name]
        default = f"{key['default']!r} if left out" if "default" in key else "may be left out"
        lines.append(f"  {name}: {expected(key)}; {'required' if name in required else default}")
        lines.append(fill(key["description"], 100, initial_indent=" " * 6, subsequent_indent=" " * 6))
    if stage in arguments.LIBRARY:
        others = ", ".join(sorted(set(keys["properties"]).difference(own)))
        lines += ["", f"and those of {arguments.LIBRARY[stage]}, with the meaning they have there:"]
        lines.append(fill(others, 100, initial_indent="  ", subsequent_indent="  "))
        lines += ["", "--allow-change KEY: go on from a checkpoint although KEY has changed since"]
    return "\n".join(lines)
