"""Every shipped template: the text it writes, what of it is trained on, how it continues, and what it refuses."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
from conftest import TEMPLATES, TEXTS, recipe, write_lines
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl.chat_template_utils import (
    has_generation_markers,
    is_chat_template_stop_token_trained,
)

from fledge.data.checks import check_tokenizer, stop_tokens
from fledge.data.template_checks import spans
from fledge.data.tokenise import render
from fledge.stages import tokenizer as tokenizer_stage


ALL = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
LLAMA = {"bos_token": "<s>", "eos_token": "</s>"}
TOKENS: dict[str, dict[str, Any]] = {
    "chatml": {"special_tokens": ["<|im_start|>", "<|im_end|>"]},
    "fledge": {"special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]},
    "lillm": {**LLAMA, "special_tokens": ["<r0>", "<r1>", "<r2>"]},
    "prem-1b": {**LLAMA, "special_tokens": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]},
    "tinyllama-chat": {**LLAMA, "special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]},
    "transformer-1b-chat": {**LLAMA, "special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]},
}
"""What tokenizer.yaml says besides, for a tokenizer like the source system's."""

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "A poem?"},
    {"role": "assistant", "content": "明月"},
    {"role": "user", "content": "Again."},
    {"role": "assistant", "content": "A b"},
]
SPACED = [{"role": "user", "content": " A \n"}, {"role": "assistant", "content": "\tb  "}]

# What is trained on stands in brackets.
CONVERSATION = {
    "chatml": (
        "<|begin|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nA poem?<|im_end|>\n"
        "<|im_start|>assistant\n[明月<|im_end|>]\n<|im_start|>user\nAgain.<|im_end|>\n"
        "<|im_start|>assistant\n[A b<|im_end|>]\n"
    ),
    "fledge": (
        "<|begin|><|system|>Be brief.<|end|><|user|>A poem?<|end|><|assistant|>[明月<|end|>]"
        "<|user|>Again.<|end|><|assistant|>[A b<|end|>]"
    ),
    "lillm": (
        "<s><r0>system<r1>Be brief.<r2><r0>user<r1>A poem?<r2><r0>assistant<r1>[明月</s>]"
        "<r0>user<r1>Again.<r2><r0>assistant<r1>[A b</s>]"
    ),
    "prem-1b": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nA poem?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[明月<|eot_id|>]"
        "<|start_header_id|>user<|end_header_id|>\n\nAgain.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[A b<|eot_id|>]"
    ),
    "tinyllama-chat": (
        "<s><|system|>\nBe brief.</s>\n<|user|>\nA poem?</s>\n<|assistant|>\n[明月</s>]\n"
        "<|user|>\nAgain.</s>\n<|assistant|>\n[A b</s>]\n"
    ),
    "transformer-1b-chat": (
        "<s><|user|>\nBe brief.\n\nA poem?\n<|end|>\n<|assistant|>\n[明月\n<|end|>]\n"
        "<|user|>\nAgain.\n<|end|>\n<|assistant|>\n[A b\n<|end|>]\n"
    ),
}
WITHOUT_SYSTEM = {
    "chatml": "<|begin|><|im_start|>user\n A \n<|im_end|>\n<|im_start|>assistant\n[\tb  <|im_end|>]\n",
    "fledge": "<|begin|><|user|> A \n<|end|><|assistant|>[\tb  <|end|>]",
    "lillm": "<s><r0>user<r1> A \n<r2><r0>assistant<r1>[\tb  </s>]",
    "prem-1b": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful AI assistant.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nA<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[b<|eot_id|>]"
    ),
    "tinyllama-chat": "<s><|user|>\n A \n</s>\n<|assistant|>\n[\tb  </s>]\n",
    "transformer-1b-chat": "<s><|user|>\n A \n\n<|end|>\n<|assistant|>\n[\tb  \n<|end|>]\n",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small tokenizer for each template, trained by its stage, which runs the preflight."""
    folder = tmp_path_factory.mktemp("templates")
    texts = write_lines(folder / "texts.jsonl", [{"text": text} for text in TEXTS])
    made = {}
    for name in ALL:
        keys = {"datasets": [{"path": str(texts)}], "vocab_size": 320, "chat_template": TEMPLATES / f"{name}.jinja"}
        stated = recipe(folder, "tokenizer", **keys, **TOKENS[name], output_dir=str(folder / name))
        tokenizer_stage.main(stated)
        made[name] = stated.output_dir
    return made


@pytest.fixture(params=ALL)
def name(request: pytest.FixtureRequest) -> str:
    """Each template in turn."""
    return request.param


@pytest.fixture
def templated(name: str, folders: dict[str, Path]) -> PreTrainedTokenizerBase:
    """The tokenizer with that template, as its folder brings it."""
    return AutoTokenizer.from_pretrained(folders[name])


@pytest.fixture
def text(templated: PreTrainedTokenizerBase) -> Callable[..., str]:
    def rendered(messages: list[dict[str, str]], prompt: bool = False) -> str:
        return templated.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)

    return rendered


def bracketed(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """The conversation as its tokens decode, with brackets around what is trained on."""
    ids, mask = render(tokenizer, messages)
    written, end = "", 0
    for start, stop in spans(mask):
        written += tokenizer.decode(ids[end:start]) + "[" + tokenizer.decode(ids[start:stop]) + "]"
        end = stop
    return written + tokenizer.decode(ids[end:])


def test_what_each_template_writes_and_trains_on(name: str, templated: PreTrainedTokenizerBase) -> None:
    assert bracketed(templated, MESSAGES) == CONVERSATION[name]
    assert bracketed(templated, SPACED) == WITHOUT_SYSTEM[name]


def test_its_tokenizer_carries_its_tokens(templated: PreTrainedTokenizerBase, name: str) -> None:
    check_tokenizer(templated)
    for token in TOKENS[name]["special_tokens"]:
        id = templated.convert_tokens_to_ids(token)
        assert templated(f"A{token}b", add_special_tokens=False)["input_ids"].count(id) == 1
        assert templated.decode([id]) == token and templated.decode([id], skip_special_tokens=True) == ""
    stop = CONVERSATION[name].split("]")[0].split("月")[1].strip()
    assert templated.convert_ids_to_tokens(stop_tokens(templated)) == list(dict.fromkeys([templated.eos_token, stop]))


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


def test_a_conversation_continues_without_rendering_anew(name: str, text: Callable[..., str]) -> None:
    for count in range(1, len(MESSAGES)):
        assert text(MESSAGES[: count + 1]).startswith(text(MESSAGES[:count]))
        assert len(text(MESSAGES[: count + 1])) > len(text(MESSAGES[:count]))
    expected = CONVERSATION[name].replace("]", "[").split("[")
    assert text(MESSAGES[:2], prompt=True) == expected[0]
    assert text(MESSAGES[:4], prompt=True) == "".join(expected[:3])
    assert text(MESSAGES[1:2], prompt=True) == text(MESSAGES[1:3]).split("明月")[0]


@pytest.mark.parametrize("role", ["tool", "User", "<|end|>"])
def test_an_unknown_role_is_an_error(text: Callable[..., str], role: str) -> None:
    with pytest.raises(jinja2.TemplateError, match=re.escape(f"role {role} is none of system, user, assistant")):
        text([*MESSAGES, {"role": role, "content": "x"}])


@pytest.mark.parametrize("content", [None, [{"type": "text", "text": "x"}]])
def test_content_that_is_no_text_is_an_error(text: Callable[..., str], content: Any) -> None:
    for turn in ("user", "assistant"):
        with pytest.raises((jinja2.TemplateError, TypeError)):
            text([{"role": turn, "content": content}])


@pytest.mark.parametrize("name", ["transformer-1b-chat"])
def test_a_system_message_that_no_user_turn_can_hold(text: Callable[..., str]) -> None:
    system, user, assistant, *_ = MESSAGES
    for messages, prompt in (
        ([user, assistant, system, user], False),
        ([system, system, user], False),
        ([system, assistant], False),
        ([system], True),
    ):
        with pytest.raises(jinja2.TemplateError, match="must come first and be followed by a user turn"):
            text(messages, prompt)


@pytest.mark.parametrize("name", ["tinyllama-chat"])
def test_headers_may_be_ordinary_text(templated: PreTrainedTokenizerBase, tokenizer_folder: Path) -> None:
    plain = AutoTokenizer.from_pretrained(tokenizer_folder)
    plain.chat_template = templated.chat_template.replace("|>", "~>").replace("<|", "<~")
    check_tokenizer(plain)
    written = bracketed(plain, MESSAGES[1:3])
    assert written == "<|begin|><~user~>\nA poem?<|end|>\n<~assistant~>\n[明月<|end|>]\n"


# TRL's is_chat_template_prefix_preserving asks with tool messages, which our templates refuse.
def test_trl_agrees(templated: PreTrainedTokenizerBase) -> None:
    assert has_generation_markers(templated.chat_template)
    assert is_chat_template_stop_token_trained(templated)


def test_the_readme_names_every_template_and_its_tokens() -> None:
    readme = (TEMPLATES / "README.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in readme.splitlines() if line.startswith("| `")}
    assert sorted(rows) == [f"{name}.jinja" for name in ALL]
    for name in ALL:
        row = rows[f"{name}.jinja"].replace("\\|", "|")
        assert all(f"`{token}`" in row for token in TOKENS[name]["special_tokens"])
        assert f"- **{name}**:" in readme
    assert Path(__file__).name in readme
