"""Every shipped template: what it trains on, how it continues, and what it refuses."""

from pathlib import Path

import jinja2
import pytest
from conftest import TEMPLATES
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import (
    has_generation_markers,
    is_chat_template_stop_token_trained,
)

from fledge.data.checks import check_tokenizer
from fledge.data.tokenise import render


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "A poem?"},
    {"role": "assistant", "content": "明月"},
    {"role": "user", "content": "Again."},
    {"role": "assistant", "content": "A b"},
]


@pytest.fixture(params=sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def templated(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with each template in turn."""
    tokenizer.chat_template = request.param.read_text(encoding="utf-8")
    return tokenizer


def trained_spans(tokenizer: PreTrainedTokenizerBase, trained: int) -> list[str]:
    """The runs of tokens with (1) or without (0) the generation mark, as text."""
    ids, mask = render(tokenizer, MESSAGES)
    runs: list[list[int]] = []
    for index, (token, marked) in enumerate(zip(ids, mask, strict=True)):
        if marked == trained and (index == 0 or mask[index - 1] != trained):
            runs.append([])
        if marked == trained:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


def test_the_assistants_words_and_stop_tokens_are_trained_on_and_nothing_else(
    templated: PreTrainedTokenizerBase,
) -> None:
    assert trained_spans(templated, 1) == ["明月<|end|>", "A b<|end|>"]
    between = trained_spans(templated, 0)
    assert between[0].startswith("<|begin|>") and between[0].count("<|begin|>") == 1
    assert "Be brief." in between[0] and "A poem?" in between[0]
    assert [text.endswith("<|assistant|>") for text in between] == [True, True]
    check_tokenizer(templated)


def test_fledge_costs_two_tokens_a_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    ids, mask = render(tokenizer, [{"role": "user", "content": "A"}, {"role": "assistant", "content": "b"}])
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<|begin|>",
        "<|user|>",
        "A",
        "<|end|>",
        "<|assistant|>",
        "b",
        "<|end|>",
    ]
    assert mask == [0, 0, 0, 0, 0, 1, 1]


def test_a_conversation_continues_without_rendering_anew(templated: PreTrainedTokenizerBase) -> None:
    def text(count: int, prompt: bool = False) -> str:
        return templated.apply_chat_template(MESSAGES[:count], tokenize=False, add_generation_prompt=prompt)

    for count in range(1, len(MESSAGES)):
        assert text(count + 1).startswith(text(count)) and len(text(count + 1)) > len(text(count))
    for count in (2, 4):
        assert text(count + 1) == text(count, prompt=True) + MESSAGES[count]["content"] + "<|end|>"


@pytest.mark.parametrize("role", ["tool", "User", "<|end|>"])
def test_an_unknown_role_is_an_error(templated: PreTrainedTokenizerBase, role: str) -> None:
    with pytest.raises(jinja2.TemplateError, match="is none of system, user, assistant"):
        templated.apply_chat_template([*MESSAGES, {"role": role, "content": "x"}], tokenize=False)


# TRL's is_chat_template_prefix_preserving asks with tool messages, which our templates refuse.
def test_trl_agrees(templated: PreTrainedTokenizerBase) -> None:
    assert has_generation_markers(templated.chat_template)
    assert is_chat_template_stop_token_trained(templated)


def test_the_readme_names_every_template() -> None:
    named = (TEMPLATES / "README.md").read_text(encoding="utf-8")
    templates = [path.name for path in TEMPLATES.glob("*.jinja")]
    assert templates and all(f"| `{name}` |" in named for name in templates)
    assert Path(__file__).name in named


def test_a_tokenizer_that_would_never_learn_to_stop_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    check_tokenizer(tokenizer)
    template = tokenizer.chat_template
    inside, outside = "{{- message['content'] + eos_token -}}", "{{- message['content'] -}}"
    opening = "{{- '<|assistant|>' -}}\n        {%- generation -%}"
    for changed, message in [
        (None, "no chat template; name one"),
        (template.replace("generation -%}", "if true -%}").replace("endif true", "endif"), "add them"),
        (template.replace("endgeneration -%}", "endgeneration -%}{{- eos_token -}}").replace(inside, outside), "stop"),
        (template.replace(opening, "{%- generation -%}{{- '<|assistant|>' -}}"), "only the answer belongs"),
        (template.replace("'<|' + message", "bos_token + '<|' + message"), "bos token more than once"),
        (template.replace("'<|assistant|>' -}}\n{%- endif", "'x' -}}\n{%- endif"), "generation prompt is not how"),
    ]:
        assert changed != template
        tokenizer.chat_template = changed
        with pytest.raises(ValueError, match=message):
            check_tokenizer(tokenizer)
    tokenizer.chat_template = template
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match="use a pad token of its own"):
        check_tokenizer(tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="lacks a bos, eos or pad token"):
        check_tokenizer(tokenizer)
