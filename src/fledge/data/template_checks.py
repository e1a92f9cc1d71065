"""What a chat template has to do so that a model learns where its answers end."""

import re
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .tokenise import render
from .trial import trial


PROBE = [
    {"role": "user", "content": "A?"},
    {"role": "assistant", "content": "B!"},
    {"role": "user", "content": "C?"},
    {"role": "assistant", "content": "D!"},
]
SYSTEM = {"role": "system", "content": "Z."}
MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found and, if it is wrong, the problem with its file, and the fix."""

    name: str
    found: str
    problem: str | None = None
    fix: str | None = None

    @classmethod
    def of(cls, name: str, found: str, wrong: bool, problem: str, fix: str) -> "Check":
        """A check whose `problem` and `fix` hold only if something is `wrong`."""
        return cls(name, found, problem, fix) if wrong else cls(name, found)


def check_template(tokenizer: PreTrainedTokenizerBase, place: str) -> list[Check]:
    """Every check of the tokenizer's chat template; where one fails that others rest on, the others are left out.

    Args:
        place: the tokenizer's folder, for the messages.
    """
    checks = [_usable(tokenizer, place)]
    place = f"{place}: the chat template"
    if not checks[-1].problem:
        checks.append(_bounded(tokenizer, place))
    if checks[-1].problem:
        return checks
    checks += [_system_turn(tokenizer, place), _one_bos(tokenizer, place), _written_tokens(tokenizer, place)]
    ids, mask = render(tokenizer, PROBE)
    for check in (_marked, _stop, _words, _prompt):
        checks.append(check(tokenizer, ids, spans(mask), place))
        if checks[-1].problem:
            break
    return checks


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that generation has to stop at: eos, and what ends an answer in the chat template if that is another."""
    if not tokenizer.chat_template:
        return [tokenizer.eos_token_id]
    ids, mask = render(tokenizer, PROBE)
    return list(dict.fromkeys([tokenizer.eos_token_id, *(ids[end - 1] for _, end in spans(mask))]))


def spans(mask: list[int]) -> list[tuple[int, int]]:
    """Start and end of every run of ones."""
    edges = [index for index, (a, b) in enumerate(zip([0, *mask], [*mask, 0], strict=True)) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _usable(tokenizer: PreTrainedTokenizerBase, place: str) -> Check:
    name, template = "chat template with generation markers", tokenizer.chat_template
    if not template:
        fix = "name one of chat_templates/ in tokenizer.yaml"
        return Check(name, "none", f"{place}: the tokenizer has no chat template", fix)
    if not isinstance(template, str):
        named = ", ".join(template)
        return Check(name, named, f"{place}: there are chat templates {named}", "keep one, as chat_template.jinja")
    return Check.of(
        name,
        f"{len(template)} characters",
        not MARKERS.search(template),
        f"{place}: the chat template has no {{% generation %}} markers, so no token would be trained on",
        "add them; chat_templates/ has the common layouts with markers",
    )


def _bounded(tokenizer: PreTrainedTokenizerBase, place: str) -> Check:
    fault = trial(tokenizer.chat_template, [PROBE, [SYSTEM, *PROBE]], tokenizer.special_tokens_map)
    fix = "take a template that renders in no time, such as those of chat_templates/"
    return Check.of("renders in bounded time", "yes", fault is not None, f"{place} {fault}", fix)


def _system_turn(tokenizer: PreTrainedTokenizerBase, place: str) -> Check:
    try:
        text = tokenizer.apply_chat_template([SYSTEM, *PROBE], tokenize=False)
    except TemplateError as error:
        return Check("system turns", f"refused: {error}")
    return Check.of(
        "system turns",
        "written",
        SYSTEM["content"] not in text,
        f"{place} drops a system message without a word",
        "write it, or raise_exception",
    )


def _one_bos(tokenizer: PreTrainedTokenizerBase, place: str) -> Check:
    bos = tokenizer.bos_token_id
    text = tokenizer.apply_chat_template(PROBE, tokenize=False)
    count, twice = (tokenizer(text, add_special_tokens=added)["input_ids"].count(bos) for added in (False, True))
    if bos == tokenizer.eos_token_id:
        return Check("one bos", "bos is eos; not counted")
    problem = f"{place} writes the bos token more than once"
    fix = "write bos_token once, before the first message"
    if count < 2:
        problem = f"{place} writes {tokenizer.bos_token} and so does the tokenizer's post-processor: it comes twice"
        fix = (
            "set `add_bos_token: false` in tokenizer_config.json or `post_processor: null` in tokenizer.json; the "
            "documents and templates of fledge bring their own"
        )
    return Check.of("one bos", f"{count}, with the post-processor {twice}", max(count, twice) > 1, problem, fix)


def _written_tokens(tokenizer: PreTrainedTokenizerBase, place: str) -> Check:
    """If <r0> is a token and </r2> is not, one is misspelt or forgotten. If none is, headers are text, and may be."""
    messages = [message | {"content": ""} for message in (SYSTEM, *PROBE)]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        text = tokenizer.apply_chat_template(messages[1:], tokenize=False)
    known = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    written = [token for token in dict.fromkeys(re.findall(r"<[^<>\s]+>", text)) if token not in known]
    lengths = {token: len(tokenizer(token, add_special_tokens=False)["input_ids"]) for token in written}
    pieces = [f"{token} ({length} tokens)" for token, length in lengths.items() if length > 1]
    return Check.of(
        "the template's tokens are in the vocabulary",
        ", ".join(f"{token} {length}" for token, length in lengths.items()) or "none besides bos and eos",
        0 < len(pieces) < len(written),
        f"{place} writes {', '.join(pieces)} among tokens such as {min(lengths, key=lengths.__getitem__, default='')}",
        "correct its spelling, or list it under special_tokens in tokenizer.yaml",
    )


Turns = list[tuple[int, int]]
"""Start and end of each marked answer of PROBE, in its ids."""


def _marked(tokenizer: PreTrainedTokenizerBase, ids: list[int], turns: Turns, place: str) -> Check:
    return Check.of(
        "every answer is marked",
        f"{len(turns)} of 2",
        len(turns) != 2,
        f"{place} marks {len(turns)} assistant turns of a conversation that has 2",
        "put {% generation %} and {% endgeneration %} around the words and the stop token of every assistant turn",
    )


def _stop(tokenizer: PreTrainedTokenizerBase, ids: list[int], turns: Turns, place: str) -> Check:
    last = sorted({ids[end - 1] for _, end in turns})
    tokens = [tokenizer.decode([token]) for token in last]
    added = tokenizer.added_tokens_decoder
    return Check.of(
        "the stop token is marked",
        " ".join(tokens),
        len(last) > 1 or last[0] not in added or not added[last[0]].special,
        f"{place} ends an assistant turn with {' or '.join(map(repr, tokens))} and not with one special token, such "
        f"as eos_token {tokenizer.eos_token!r}, inside its generation markers: the model would never stop",
        "move {% endgeneration %} behind the stop token, which has to be a special token",
    )


def _words(tokenizer: PreTrainedTokenizerBase, ids: list[int], turns: Turns, place: str) -> Check:
    words = [tokenizer.decode(ids[start : end - 1]) for start, end in turns]
    answers = [message["content"] for message in PROBE if message["role"] == "assistant"]
    return Check.of(
        "only the answer is marked",
        repr(words),
        # Whitespace between the words and the stop token is the assistant's to write.
        [text.rstrip() for text in words] != answers,
        f"{place}'s generation markers hold {words} where only the answer belongs, which is {answers}",
        "open {% generation %} behind the header, and close it behind the stop token",
    )


def _prompt(tokenizer: PreTrainedTokenizerBase, ids: list[int], turns: Turns, place: str) -> Check:
    """The prompt of each answer is how training rendered what stands before its first supervised token."""
    same = True
    for count, (start, _) in zip((1, 3), turns, strict=True):
        prompt = tokenizer.apply_chat_template(PROBE[:count], add_generation_prompt=True, return_dict=True)
        same &= prompt["input_ids"] == ids[:start]
    return Check.of(
        "the prompt of generation is that of training",
        "the same tokens" if same else "other tokens",
        not same,
        f"{place}'s generation prompt is not how it renders the turns before an answer",
        "write the same header under add_generation_prompt as before {% generation %}",
    )
