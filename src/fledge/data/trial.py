"""Render a chat template in a process of its own, within limits, before it is rendered in ours.

transformers renders templates in Jinja's sandbox: they reach neither files nor the interpreter. But nested loops run
for hours and 'a' * 10**12 fills the memory, so a template is first tried where that harms nobody.
"""

import json
import subprocess
import sys
from typing import Any


CPU_SECONDS = 2
"""Of processor time, not of the clock, so that a busy machine refuses no template; a template cannot sleep."""
MEMORY_BYTES = 1 << 30
OUTPUT_CHARACTERS = 1_000_000


def trial(template: str, conversations: list[list[dict[str, str]]], variables: dict[str, Any]) -> str | None:
    """What is wrong with rendering `conversations`, or None: too slow, too large, or an error.

    Args:
        conversations: the first has to be rendered; any other the template may refuse with raise_exception.
        variables: what the template may use besides: the tokenizer's special tokens.
    """
    task = json.dumps({"template": template, "conversations": conversations, "variables": variables})
    done = subprocess.run([sys.executable, "-P", __file__], input=task, capture_output=True, encoding="utf-8")
    if done.returncode < 0:
        return f"takes more than {CPU_SECONDS} s to render a few short messages"
    if done.returncode:
        return f"cannot be rendered: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
    return None


def _child() -> None:
    import resource
    from contextlib import suppress
    from datetime import datetime

    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Markers that mark nothing."""

        tags = frozenset({"generation"})

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    task = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # not every system limits memory
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        # As transformers sets it up (utils/chat_template_utils.py).
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.globals |= {"raise_exception": raise_exception, "strftime_now": datetime.now().strftime}
        template = environment.from_string(task["template"])
        for index, messages in enumerate(task["conversations"]):
            with suppress(*[TemplateError] * bool(index)):
                for prompt in (False, True):
                    text = template.render(messages=messages, add_generation_prompt=prompt, **task["variables"])
                    if len(text) > OUTPUT_CHARACTERS:
                        sys.exit(f"a few short messages become {len(text)} characters")
    except MemoryError:
        sys.exit("it takes more than 1 GB of memory")
    except Exception as error:  # whatever a template does wrong: syntax, types, its own raise_exception
        sys.exit(f"{type(error).__name__}: {error}".replace("\n", " "))


if __name__ == "__main__":
    _child()
