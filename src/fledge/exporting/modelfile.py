"""The Modelfile that Ollama makes a model from: the file, the template, when to stop, how to sample.

Its words: github.com/ollama/ollama, docs/modelfile.md and docs/template.md.
"""

from jinja2.exceptions import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .gguf import About
from .vocabulary import stop_ids


ROLES = ("system", "user", "assistant")
WITH_TEMPLATE = """\
# Ollama does not run the chat template inside the GGUF, which is Jinja: this one, of Go, writes the same."""
WITHOUT_TEMPLATE = """\
# Ollama does not run the chat template inside the GGUF, which is Jinja, and what that writes cannot be said turn by
# turn: add a TEMPLATE of Go here (docs/template.md of Ollama), or use llama.cpp, which runs the one inside."""
NO_TEMPLATE = """\
# The model has no chat template: Ollama gives it the words as they are."""


def modelfile(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: str, about: About) -> str:
    """The text of a Modelfile for `file` beside it; all else is what the model's records say."""
    lines = [f"# {about.name}: ollama create {about.name.lower()} -f Modelfile", f"FROM ./{file}"]
    template = go_template(tokenizer) if tokenizer.chat_template else None
    if template is not None:
        lines += [WITH_TEMPLATE, f'TEMPLATE """{template}"""']
    else:
        lines.append(WITHOUT_TEMPLATE if tokenizer.chat_template else NO_TEMPLATE)
    for token in tokenizer.convert_ids_to_tokens(stop_ids(tokenizer, model)):
        lines.append(f'PARAMETER stop "{token}"')
    lines.append(f"PARAMETER num_ctx {model.config.max_position_embeddings}")
    lines += [f"PARAMETER {name} {value}" for name, value in sampling(model, about).items()]
    if about.licence:
        lines.append(f'LICENSE """{about.licence}"""')
    return "\n".join(lines) + "\n"


def sampling(model: PreTrainedModel, about: About) -> dict[str, float]:
    """How answers are drawn: as generation_config.json says, else as in the evaluation, else the likeliest token.

    All are stated, because what Ollama does by default (top_k 40, top_p 0.9) is not what transformers does.
    """
    stated = model.generation_config
    neutral = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
    if not stated.do_sample:
        return neutral | {"temperature": about.temperature or 0.0}
    found = {
        "temperature": 1.0 if stated.temperature is None else stated.temperature,
        "top_k": 50 if stated.top_k is None else stated.top_k,  # transformers' own default
        "top_p": stated.top_p,
        "min_p": stated.min_p,
        "repeat_penalty": stated.repetition_penalty,
    }
    return neutral | {name: value for name, value in found.items() if value is not None}


def go_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template as one of Go, if it writes the same words around every turn of a role; None if not."""
    try:
        turns = _turns(tokenizer)
    except TemplateError:  # it refuses a conversation that it was shown
        return None
    if turns is None or any('"""' in text or "{{" in text for pair in turns.values() for text in pair):
        return None
    branches = " else ".join(
        f'if eq .Role "{role}" }}}}{turns[role][0]}{{{{ .Content }}}}{turns[role][1]}{{{{' for role in ROLES
    )
    begin, end = turns["around"]
    return f"{begin}{{{{ range .Messages }}}}{{{{ {branches} end }}}}{{{{ end }}}}{end}"


def _turns(tokenizer: PreTrainedTokenizerBase) -> dict[str, tuple[str, str]] | None:
    """What stands before and after the words of each role, and `around` a prompt."""

    def write(*roles: str, prompt: bool = False) -> str:
        messages = [{"role": role, "content": words(index)} for index, role in enumerate(roles)]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)

    def words(index: int) -> str:
        return f"\ue000{index}\ue001"  # for private use: no template writes these

    user, answered, asked = write("user"), write("user", "assistant"), write("user", "assistant", "user")
    found = {
        "assistant": answered.removeprefix(user).partition(words(1))[::2],
        "user": asked.removeprefix(answered).partition(words(2))[::2],
    }
    begin = user.partition(words(0))[0].removesuffix(found["user"][0])
    system = write("system", "user").removeprefix(begin)
    rest = words(1).join(found["user"])
    found["system"] = system.removesuffix(rest).partition(words(0))[::2]
    found["around"] = (begin, write("user", prompt=True).removeprefix(user))

    def said(*roles: str) -> str:
        turns = (words(index).join(found[role]) for index, role in enumerate(roles))
        return begin + "".join(turns) + found["around"][1]

    shapes = [("user",), ("system", "user"), ("user", "assistant", "user"), ("system", "user", "assistant", "user")]
    return found if all(said(*roles) == write(*roles, prompt=True) for roles in shapes) else None
