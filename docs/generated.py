"""What the pages take from the code while they are built, so that it cannot go stale.

{keys} STAGE       the stage's own recipe keys: type, default, meaning; {keys} STAGE.KEY: those of a list's entries
{library} STAGE    those it takes from a Hugging Face dataclass; for sft and dpo what TrainingArguments lacks
{architectures}    the keys of model_config, by model_type
{help} COMMAND     what `fledge COMMAND --help` prints
{moved}            keys of older libraries and guides, and what to write today
"""

import io
from collections.abc import Iterable
from contextlib import redirect_stdout, suppress
from dataclasses import fields
from importlib import import_module
from typing import Any
from unittest.mock import patch

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from fledge import arguments, cli, schema
from fledge.schema.check import expected
from fledge.schema.names import REFUSED, RETIRED


COLUMNS = "96"
BASE = "pretrain"
"""The stage whose library keys sft and dpo share."""


def entry(name: str, key: dict[str, Any], meaning: str, required: bool) -> str:
    """A key as an item of a Markdown definition list."""
    default = "**required**" if required else f"`{key['default']!r}` if left out" if "default" in key else "optional"
    return f"`{name}`\n: {expected(key)}; {default}. {' '.join(meaning.split())}\n"


def own_keys(stage: str) -> str:
    """The keys of the stage's dataclass in `fledge.arguments`, in its order."""
    keys = schema.load(stage)
    names = [field.name for field in fields(arguments.STAGES[stage])]
    names += sorted(set(keys["required"]).difference(names))
    parts = [(name, keys["properties"][name]) for name in names]
    return "\n".join(entry(name, key, key["description"], name in keys["required"]) for name, key in parts)


def parts_of(key: dict[str, Any]) -> str:
    """The keys of each mapping in a list, such as those of an entry of `datasets`."""
    items = key["items"]
    required = items.get("required", ())
    return "\n".join(
        entry(name, part, part["description"], name in required) for name, part in items["properties"].items()
    )


def library_keys(stage: str) -> str:
    """The keys of the stage's Hugging Face dataclass with its own help texts; escaped, they are not ours."""
    keys, own = schema.load(stage), {field.name for field in fields(arguments.STAGES[stage])}
    module, _, name = arguments.LIBRARY[stage].rpartition(".")
    helps = {field.name: field.metadata.get("help", "") for field in fields(getattr(import_module(module), name))}
    names = [name for name in sorted(keys["properties"]) if name not in own and name not in keys["required"]]
    if stage != BASE:
        shared = schema.load(BASE)["properties"]
        names = [name for name in names if keys["properties"][name] != shared.get(name)]
    return "\n".join(entry(name, keys["properties"][name], plain(helps[name]), False) for name in names)


def plain(text: str) -> str:
    """Markdown that shows this text as it is."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>#|$!" else letter for letter in text)


def help_of(command: str) -> str:
    """What `fledge COMMAND --help` prints, whatever the width of the terminal."""
    words = [*command.split(), "--help"]
    printed = io.StringIO()
    with redirect_stdout(printed), patch.dict("os.environ", COLUMNS=COLUMNS), suppress(SystemExit):
        cli.main(words)
    return printed.getvalue().rstrip()


def architectures() -> str:
    """The keys of model_config, for each model_type its own."""
    config = schema.load("pretrain")["properties"]["model_config"]
    text = ""
    for rule in config["allOf"]:
        names = [name for name in rule["then"]["propertyNames"]["enum"] if name != "model_type"]
        types = [(name, expected(config["properties"][name])) for name in names]
        shown = [f"`{name}` ({kind})" if len(kind) < 40 else f"`{name}`" for name, kind in types]
        text += f"`{rule['if']['properties']['model_type']['const']}`\n: {', '.join(shown)}\n\n"
    return text


def moved() -> str:
    """A table of names that no recipe may state, each with what to write."""
    rows = [f"| `{name}` | {plain(what)} |" for name, what in sorted({**REFUSED, **RETIRED}.items())]
    return "\n".join(["| a key of theirs | what fledge says of it |", "|---|---|", *rows])


class Text(SphinxDirective):
    """A directive whose content is Markdown made by a function of its argument."""

    has_content = False
    optional_arguments = 1
    final_argument_whitespace = True

    def markdown(self, argument: str) -> str:
        raise NotImplementedError

    def run(self) -> Iterable[nodes.Node]:
        return self.parse_text_to_nodes(self.markdown(self.arguments[0] if self.arguments else ""))


class Keys(Text):
    def markdown(self, argument: str) -> str:
        stage, _, key = argument.partition(".")
        return parts_of(schema.load(stage)["properties"][key]) if key else own_keys(stage)


class Library(Text):
    def markdown(self, argument: str) -> str:
        return library_keys(argument)


class Architectures(Text):
    def markdown(self, argument: str) -> str:
        return architectures()


class Moved(Text):
    def markdown(self, argument: str) -> str:
        return moved()


class Help(SphinxDirective):
    """A literal block."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> Iterable[nodes.Node]:
        text = help_of(self.arguments[0] if self.arguments else "")
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("keys", Keys)
    app.add_directive("library", Library)
    app.add_directive("moved", Moved)
    app.add_directive("architectures", Architectures)
    app.add_directive("help", Help)
    return {"parallel_read_safe": True}
