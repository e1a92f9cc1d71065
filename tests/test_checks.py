"""The preflight: each fault of tokenizer, template, model and rows by itself, its message, and the stages that ask."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CONVERSATIONS, TEMPLATES, TEXTS, TINY, recipe, tiny_config, write_lines
from tokenizers import AddedToken, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, PreTrainedTokenizerBase

import fledge
from fledge.data.checks import Check, check_tokenizer, fingerprint, preflight, require, stop_tokens
from fledge.files import read_json, write_json
from fledge.model.modeling_fledge import FledgeForCausalLM
from fledge.stages import dpo, export, prepare, pretrain, sft


Tokenizer = PreTrainedTokenizerBase
Change = Callable[[Tokenizer], None]


def problems(checks: list[Check]) -> list[str]:
    """`name: problem; fix` of every check that found one."""
    return [f"{check.name}: {check.problem}; {check.fix}" for check in checks if check.problem]


def matching(tokenizer: Tokenizer) -> dict[str, Any]:
    """Model and rows that belong to the tokenizer."""
    return {
        "config": tiny_config(vocab_size=len(tokenizer)),
        "generation_config": GenerationConfig(eos_token_id=tokenizer.eos_token_id),
        "manifest": {"tokenizer": fingerprint(tokenizer), "max_length": 64},
    }


def test_what_belongs_together_passes(tokenizer: Tokenizer) -> None:
    checks = preflight(tokenizer, **matching(tokenizer))
    assert problems(checks) == []
    assert len({check.name for check in checks}) == len(checks) == 18
    assert all(check.found and check.fix is None for check in checks)
    require(checks)


# --- the chat template


def replaced(*pairs: tuple[str, str]) -> Change:
    """The template with each text in the place of another."""

    def change(tokenizer: Tokenizer) -> None:
        for old, new in pairs:
            assert old in tokenizer.chat_template
            tokenizer.chat_template = tokenizer.chat_template.replace(old, new)

    return change


def prefixed(text: str) -> Change:
    """The template with something before it."""
    return lambda tokenizer: setattr(tokenizer, "chat_template", text + tokenizer.chat_template)


def post_processed(single: str, *tokens: str) -> Change:
    """A tokenizer that adds tokens to every text."""

    def change(tokenizer: Tokenizer) -> None:
        special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in tokens]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)

    return change


OPEN, CLOSE = "{%- generation -%}", "{%- endgeneration -%}"
HEADER = "{{- '<|assistant|>' -}}"
WORDS = "{{- message['content'] + eos_token -}}"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TEMPLATE_FAULTS: dict[str, tuple[Change, str, str]] = {
    "none": (
        lambda tokenizer: setattr(tokenizer, "chat_template", None),
        "chat template with generation markers: FOLDER: the tokenizer has no chat template",
        "name one of chat_templates/ in tokenizer.yaml",
    ),
    "several": (
        lambda tokenizer: setattr(tokenizer, "chat_template", {"default": "a", "tools": "b"}),
        "chat template with generation markers: FOLDER: there are chat templates default, tools",
        "keep one",
    ),
    "no markers": (
        replaced((OPEN, ""), (CLOSE, "")),
        "chat template with generation markers: FOLDER: the chat template has no {% generation %} markers, so no",
        "add them",
    ),
    "no markers at one turn": (
        replaced(
            (OPEN, "{%- if loop.last -%}" + OPEN),
            (CLOSE, CLOSE + "{%- else -%}{{- message['content'] + eos_token -}}{%- endif -%}"),
        ),
        "every answer is marked: FOLDER: the chat template marks 1 assistant turns of a conversation that has 2",
        "of every assistant turn",
    ),
    "an empty mask": (
        replaced((OPEN, OPEN + CLOSE + "{%- if true -%}"), (WORDS + "\n        " + CLOSE, WORDS + "{%- endif -%}")),
        "every answer is marked: FOLDER: the chat template marks 0 assistant turns of a conversation that has 2",
        "of every assistant turn",
    ),
    "stop token outside the mask": (
        replaced(
            (WORDS + "\n        " + CLOSE, "{{- message['content'] -}}" + CLOSE + "{{- eos_token -}}"),
        ),
        "the stop token is marked: FOLDER: the chat template ends an assistant turn with '!' and not with one special",
        "move {% endgeneration %} behind the stop token",
    ),
    "stop token that is text": (
        replaced((WORDS + "\n        ", "{{- message['content'] + 'END' -}}\n        ")),
        "the stop token is marked: FOLDER: the chat template ends an assistant turn with 'D' and not with one special",
        "which has to be a special token",
    ),
    "header inside the mask": (
        replaced((HEADER + "\n        " + OPEN, OPEN + HEADER)),
        "only the answer is marked: FOLDER: the chat template's generation markers hold ['<|assistant|>B!', ",
        "open {% generation %} behind the header",
    ),
    "newline of the header inside the mask": (
        replaced((OPEN, OPEN + "{{- '\\n' -}}"), (HEADER + "\n{%- endif", HEADER + "{{- '\\n' -}}\n{%- endif")),
        "only the answer is marked: FOLDER: the chat template's generation markers hold ['\\nB!', ",
        "open {% generation %} behind the header",
    ),
    "another prompt": (
        replaced((HEADER + "\n{%- endif", "{{- '<|user|>' -}}\n{%- endif")),
        "the prompt of generation is that of training: FOLDER: the chat template's generation prompt is not how",
        "write the same header under add_generation_prompt",
    ),
    "no prompt": (
        replaced((HEADER + "\n{%- endif", "\n{%- endif")),
        "the prompt of generation is that of training: FOLDER: the chat template's generation prompt is not how",
        "write the same header under add_generation_prompt",
    ),
    "a header that the prompt lacks": (
        replaced((HEADER + "\n        " + OPEN, HEADER + "{{- '\\n' -}}" + OPEN)),
        "the prompt of generation is that of training: FOLDER: the chat template's generation prompt is not how",
        "write the same header under add_generation_prompt",
    ),
    "two bos": (
        replaced(("{{- bos_token -}}", "{{- bos_token + bos_token -}}")),
        "one bos: FOLDER: the chat template writes the bos token more than once",
        "write bos_token once",
    ),
    "a bos in every turn": (
        replaced(("'<|' + message", "bos_token + '<|' + message")),
        "one bos: FOLDER: the chat template writes the bos token more than once",
        "write bos_token once",
    ),
    "a bos of the post-processor's": (
        post_processed("<|begin|> $A", "<|begin|>"),
        "one bos: FOLDER: the chat template writes <|begin|> and so does the tokenizer's post-processor",
        "set `add_bos_token: false` in tokenizer_config.json or `post_processor: null` in tokenizer.json",
    ),
    "no system turn": (
        replaced(("in ('system', 'user')", "== 'user'"), ("{%- else -%}", "{%- elif message['role'] != 'system' -%}")),
        "system turns: FOLDER: the chat template drops a system message without a word",
        "write it, or raise_exception",
    ),
    "a misspelt header": (
        replaced(("'<|' + message['role'] + '|>'", "'<|' + message['role'][:3] + '|>'")),
        "the template's tokens are in the vocabulary: FOLDER: the chat template writes <|sys|> (",
        "correct its spelling, or list it under special_tokens",
    ),
    "for ever": (
        prefixed(LOOP),
        "renders in bounded time: FOLDER: the chat template takes more than 2 s to render a few short messages",
        "take a template that renders in no time",
    ),
    "for ever with a system turn": (
        prefixed("{% if messages[0]['role'] == 'system' %}" + LOOP + "{% endif %}"),
        "renders in bounded time: FOLDER: the chat template takes more than 2 s to render a few short messages",
        "take a template that renders in no time",
    ),
    "all memory": (
        prefixed("{% set a = 'a' * 10**10 %}"),
        "renders in bounded time: FOLDER: the chat template cannot be rendered: it takes more than 1 GB of memory",
        "take a template",
    ),
    "a long text": (
        prefixed("{{ 'a' * 2000000 }}"),
        "renders in bounded time: FOLDER: the chat template cannot be rendered: a few short messages become 2000",
        "take a template",
    ),
    "broken syntax": (
        prefixed("{% if %}"),
        "renders in bounded time: FOLDER: the chat template cannot be rendered: TemplateSyntaxError: Expected an",
        "take a template",
    ),
    "an error of its own": (
        prefixed("{{ raise_exception('not you') }}"),
        "renders in bounded time: FOLDER: the chat template cannot be rendered: TemplateError: not you",
        "take a template",
    ),
    "a way out": (
        prefixed("{{ messages.__class__.__mro__ }}"),
        "renders in bounded time: FOLDER: the chat template cannot be rendered: SecurityError: ",
        "take a template",
    ),
}


@pytest.mark.parametrize("fault", TEMPLATE_FAULTS)
def test_a_template_that_teaches_no_end_is_refused(tokenizer: Tokenizer, tokenizer_folder: Path, fault: str) -> None:
    change, problem, fix = TEMPLATE_FAULTS[fault]
    change(tokenizer)
    found = problems(preflight(tokenizer))
    assert len(found) == 1
    assert found[0].startswith(problem.replace("FOLDER", str(tokenizer_folder)))
    assert fix in found[0].removeprefix(problem)


def test_the_problem_is_raised_with_its_fix(tokenizer: Tokenizer, tokenizer_folder: Path) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ValueError) as raised:
        check_tokenizer(tokenizer)
    assert str(raised.value) == (
        f"{tokenizer_folder}: the tokenizer has no chat template; name one of chat_templates/ in tokenizer.yaml"
    )


def test_a_template_may_refuse_system_turns(tokenizer: Tokenizer) -> None:
    replaced(("in ('system', 'user')", "== 'user'"))(tokenizer)
    (check,) = [check for check in preflight(tokenizer) if check.name == "system turns"]
    assert check == Check("system turns", "refused: role system is none of system, user, assistant")
    require(preflight(tokenizer))


# --- tokenizer, model and rows


def lower_cased(tokenizer: Tokenizer) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def whole_words(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens({"pad_token": AddedToken("<pad>", single_word=True, special=True)})


TOKENIZER_FAULTS: dict[str, tuple[Change, str, str]] = {
    "pad missing": (
        lambda tokenizer: setattr(tokenizer, "pad_token", None),
        "bos, eos and pad are named: FOLDER: the tokenizer lacks a bos, eos or pad token",
        "name all three in tokenizer.yaml",
    ),
    "eos missing": (
        lambda tokenizer: setattr(tokenizer, "eos_token", None),
        "bos, eos and pad are named: FOLDER: the tokenizer lacks a bos, eos or pad token",
        "name all three in tokenizer.yaml",
    ),
    "pad is eos": (
        lambda tokenizer: setattr(tokenizer, "pad_token", tokenizer.eos_token),
        "pad differs from eos: FOLDER: pad_token and eos_token are both <|end|>: padding is never trained on",
        "use a pad token of its own",
    ),
    "a special token in pieces": (
        whole_words,
        "special tokens are single tokens: FOLDER: special tokens that text does not turn into one token: <pad>",
        "list them as special added tokens",
    ),
    "capitals lost": (
        lower_cased,
        "text comes back: FOLDER: the tokenizer loses text: 'Who is it? ",
        "take a tokenizer without lossy normalisation",
    ),
    "an eos after every text": (
        post_processed("$A <|end|>", "<|end|>"),
        "nothing is appended to text: FOLDER: the tokenizer's post-processor appends <|end|> to every text, prompts",
        "set `add_eos_token: false` in tokenizer_config.json",
    ),
}


@pytest.mark.parametrize("fault", TOKENIZER_FAULTS)
@pytest.mark.parametrize("chat", [True, False])
def test_a_tokenizer_that_loses_something_is_refused(
    tokenizer: Tokenizer, tokenizer_folder: Path, fault: str, chat: bool
) -> None:
    change, problem, fix = TOKENIZER_FAULTS[fault]
    change(tokenizer)
    if not chat:
        tokenizer.chat_template = None
    found = problems(preflight(tokenizer, chat=chat))
    assert found[0].startswith(problem.replace("FOLDER", str(tokenizer_folder))) and fix in found[0]
    # Where special tokens are no tokens or words come back changed, the template's checks fail on it too.
    assert len(found) == 1 or (chat and fault == "capitals lost")


MODEL_FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a small embedding": (
        {"config": tiny_config(vocab_size=319)},
        "the tokenizer fits the embedding: model_config: the tokenizer has 320 entries, the model 319",
        "write `vocab_size: 320` or more, or leave it out",
    ),
    "no stop token": (
        {"generation_config": GenerationConfig()},
        "generation_config stops where the template does: generation_config.json: eos_token_id is None and lacks",
        "write `eos_token_id: 2`",
    ),
    "another stop token": (
        {"generation_config": GenerationConfig(eos_token_id=[7, 8])},
        "generation_config stops where the template does: generation_config.json: eos_token_id is [7, 8] and lacks",
        "write `eos_token_id: 2`",
    ),
    "padding stops": (
        {"generation_config": GenerationConfig(eos_token_id=[0, 2])},
        "generation_config stops where the template does: generation_config.json: eos_token_id is [0, 2] and holds",
        "write `eos_token_id: 2`",
    ),
    "other rows": (
        {"manifest": {"tokenizer": "0" * 64, "max_length": 64}},
        "rows were prepared with this tokenizer: prepared: its rows were made with another tokenizer or chat template",
        "run prepare again",
    ),
    "short positions": (
        {"config": tiny_config(max_position_embeddings=63)},
        "rows fit the model: prepared: rows of 64 tokens, and max_position_embeddings is 63",
        "raise it in model_config, or prepare shorter rows",
    ),
    "long pairs": (
        {"manifest": None, "max_length": 257},
        "rows fit the model: max_length: rows of 257 tokens, and max_position_embeddings is 256",
        "write at most `max_length: 256`",
    ),
}


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_a_model_of_another_tokenizer_is_refused(tokenizer: Tokenizer, fault: str) -> None:
    changed, problem, fix = MODEL_FAULTS[fault]
    found = problems(preflight(tokenizer, **matching(tokenizer) | changed))
    assert len(found) == 1 and found[0].startswith(problem) and fix in found[0]


def test_the_folder_of_the_model_is_named(tokenizer: Tokenizer) -> None:
    given = matching(tokenizer) | {"generation_config": GenerationConfig()}
    given["config"].name_or_path = "runs/x/sft"
    (found,) = problems(preflight(tokenizer, **given))
    assert "runs/x/sft/generation_config.json: eos_token_id is None" in found


def test_generation_has_to_stop_at_the_templates_own_token_too(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8")
    assert stop_tokens(tokenizer) == [2, 321]
    given = matching(tokenizer)
    (found,) = problems(preflight(tokenizer, **given))
    assert (
        "eos_token_id is 2 and lacks <|im_end|> (321), which ends an answer; write `eos_token_id: [2, 321]`" in found
    )
    given["generation_config"] = GenerationConfig(eos_token_id=[321, 5, 2])
    assert problems(preflight(tokenizer, **given)) == []


def test_all_problems_come_at_once(tokenizer: Tokenizer) -> None:
    given = matching(tokenizer)
    given["generation_config"].eos_token_id = None
    given["manifest"]["max_length"] = 1000
    with pytest.raises(ValueError, match=r"^2 problems before the first step:\n") as raised:
        require(preflight(tokenizer, **given))
    assert "which ends an answer; write" in str(raised.value) and "rows of 1000 tokens" in str(raised.value)


# --- the stages


KEYS = {"bf16": False, "torch_compile": False, "disable_tqdm": True, "save_strategy": "no", "max_steps": 1}


@pytest.fixture
def folders(
    tokenizer: Tokenizer,
    tokenizer_folder: Path,
    make_model: Callable[..., FledgeForCausalLM],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Path]:
    """A model, and rows and pairs to train it on."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    model = tmp_path / "model"
    make_model().save_pretrained(model)
    tokenizer.save_pretrained(model)
    rows = {"text": [{"text": text} for text in TEXTS], "chat": CONVERSATIONS}
    for name, values in rows.items():
        data = [{"path": str(write_lines(tmp_path / f"{name}.jsonl", values))}]
        keys = {"datasets": data, "tokenizer": tokenizer_folder, "max_length": 80, "output_dir": str(tmp_path / name)}
        prepare.main(recipe(tmp_path, "prepare", **keys))
    return {"model": model, "tokenizer": tokenizer_folder, **{name: tmp_path / name for name in rows}}


def stated(folder: Path, stage: str, given: dict[str, Path], **values: Any) -> Any:
    """A recipe of one step."""
    model_config = {key: value for key, value in TINY.items() if key != "vocab_size"}
    step = {"tokens_per_step": 160, "per_device_train_batch_size": 2}
    model = {"model_name_or_path": given["model"]}
    own = {
        "pretrain": KEYS | step | {"prepared": given["text"], "tokenizer": given["tokenizer"]},
        "sft": KEYS | step | model | {"prepared": given["chat"], "max_length": 80},
        "dpo": KEYS | model | {"pairs": folder / "pairs", "pairs_per_step": 2, "per_device_train_batch_size": 2},
        "export": model,
    }[stage]
    own |= {"model_config": model_config} if stage == "pretrain" else {}
    own |= {"packing": True, "assistant_only_loss": True} if stage == "sft" else {}
    return recipe(folder, stage, **own | values)


@pytest.mark.parametrize("stage", [sft, dpo, export], ids=lambda module: module.__name__.split(".")[-1])
def test_every_stage_asks_before_it_begins(stage: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    GenerationConfig(eos_token_id=1).save_pretrained(folders["model"])
    name = stage.__name__.split(".")[-1]
    with pytest.raises(ValueError, match=r"model/generation_config\.json: eos_token_id is 1 and lacks"):
        stage.main(stated(tmp_path, name, folders))
    assert not (tmp_path / name / "model.safetensors").exists()


def test_pretraining_asks_and_needs_no_chat_template(
    folders: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    manifest = folders["text"] / "manifest.json"
    tokenizer.chat_template = None
    folders["tokenizer"] = tmp_path / "plain"
    tokenizer.save_pretrained(folders["tokenizer"])
    with pytest.raises(ValueError, match="made with another tokenizer or chat template; run prepare again"):
        pretrain.main(stated(tmp_path, "pretrain", folders))
    write_json(manifest, read_json(manifest) | {"tokenizer": fingerprint(tokenizer)})
    pretrain.main(stated(tmp_path, "pretrain", folders))
    assert read_json(tmp_path / "pretrain" / "generation_config.json")["eos_token_id"] == 2
    export.main(stated(tmp_path, "export", folders | {"model": tmp_path / "pretrain"}))


def test_pretraining_names_every_stop_token(folders: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8")
    folders["tokenizer"] = tmp_path / "chatml"
    tokenizer.save_pretrained(folders["tokenizer"])
    for name in ("text", "chat"):
        manifest = folders[name] / "manifest.json"
        write_json(manifest, read_json(manifest) | {"tokenizer": fingerprint(tokenizer)})
    pretrain.main(stated(tmp_path, "pretrain", folders))
    assert read_json(tmp_path / "pretrain" / "generation_config.json")["eos_token_id"] == [2, 321]
    assert read_json(tmp_path / "pretrain" / "config.json")["eos_token_id"] == 2
    sft.main(stated(tmp_path, "sft", folders | {"model": tmp_path / "pretrain"}))
    assert read_json(tmp_path / "sft" / "generation_config.json")["eos_token_id"] == [2, 321]


def test_a_missing_folder_is_one_line_and_exit_code_2(folders: dict[str, Path], tmp_path: Path) -> None:
    missing = folders | {"model": tmp_path / "runs" / "sft"}
    path = stated(tmp_path, "dpo", missing).path
    environment = {**os.environ, "PYTHONPATH": str(Path(fledge.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "fledge", "dpo", path], env=environment, capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        f"fledge: model_name_or_path: {missing['model']}: no such folder; run the stage that writes it (sft)"
    )
    assert done.stderr.count("fledge:") == 1 and "Traceback" not in done.stderr
