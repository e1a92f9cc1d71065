"""Chat: the real command on a tiny random model, its answers, its memory, and Ctrl-C."""

import html
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from gradio_client import Client
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

import fledge
from fledge.chat.history import TurnTooLong, fit
from fledge.chat.models import find_model
from fledge.chat.sampling import Sampling
from fledge.chat.speaker import _harmless, _Pieces
from fledge.cli import main
from fledge.model.configuration_fledge import FledgeConfig
from fledge.model.modeling_fledge import FledgeForCausalLM


SOURCE = Path(fledge.__file__).parents[1]
SPECIAL = {"pad_token": "<|pad|>", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
COMMAND = [sys.executable, "-m", "fledge", "chat"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
SHORT = ["--seed", "1", "--max_new_tokens", "8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random fledge model with the chat template of the recipes. It never stops by itself."""
    folder = tmp_path_factory.mktemp("model")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    turns = ["<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[*SPECIAL.values(), *turns], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(["床前明月光，疑是地上霜。", "举头望明月，低头思故乡。"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens=turns, **SPECIAL)
    tokenizer.chat_template = (SOURCE.parent / "chat_templates" / "fledge.jinja").read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = FledgeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=100_000,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    random = FledgeForCausalLM(config)
    random.generation_config.suppress_tokens = [tokenizer.eos_token_id]
    random.save_pretrained(folder)
    return folder


@pytest.fixture
def changed(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the model with other values in one of its JSON files."""

    def change(file: str, **values: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(model, folder)
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return folder

    return change


def test_the_command_answers_the_same_in_every_process(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [*COMMAND, model, "-p", "写一首诗。", *SHORT], env=ENVIRONMENT, capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stderr) == (0, f"loading {model} ...\n")
    assert len(done.stdout) > 1 and done.stdout.endswith("\n")
    assert main(["chat", str(model), "-p", "写一首诗。", *SHORT]) == 0
    assert capsys.readouterr().out == done.stdout
    assert main(["chat", str(model), "-p", "写一首诗。", "--max_new_tokens", "8", "--seed", "2"]) == 0
    assert capsys.readouterr().out != done.stdout


def test_greedy_needs_no_seed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = set()
    for seed in ("3", "4"):
        assert main(["chat", str(model), "-p", "hello", "--greedy", "--seed", seed, "--max_new_tokens", "8"]) == 0
        answers.add(capsys.readouterr().out)
    assert len(answers) == 1


def test_every_stop_token_stops(model: Path, changed: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(
        "generation_config.json", eos_token_id=list(range(FledgeConfig.from_pretrained(model).vocab_size))
    )
    assert main(["chat", str(folder), "-p", "hello"]) == 0
    assert capsys.readouterr().out == "\n"


def test_piped_turns_and_commands(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _heard(monkeypatch)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n/help\n/reset\nthree\n/exit\nfour\n"))
    assert main(["chat", str(model)]) == 0
    output = capsys.readouterr()
    assert output.out == "answer to one\nanswer to two\nanswer to three\n"
    assert "/reset            forget" in output.err and "(a new conversation)" in output.err
    assert [[message["content"] for message in messages] for messages in seen] == [
        ["one"],
        ["one", "answer to one", "two"],
        ["three"],
    ]


def _heard(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """What models are given from now on; they only echo."""
    seen: list[list[dict[str, str]]] = []

    def echo(_: Any, messages: list[dict[str, str]], __: Sampling, write: Callable[[str], None], ___: Any) -> str:
        seen.append(messages)
        answer = f"answer to {messages[-1]['content']}"
        write(answer)
        return answer

    monkeypatch.setattr("fledge.chat.speaker.Speaker.answer", echo)
    return seen


def test_a_conversation_is_saved_and_gone_on_with(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, file = _heard(monkeypatch), tmp_path / "talk.json"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"one\n/save {file}\n/system Be brief.\ntwo\n/load {file}\nthree\n"))
    assert main(["chat", str(model), "--system", "Be kind."]) == 0
    kind, brief = ({"role": "system", "content": text} for text in ("Be kind.", "Be brief."))
    assert seen == [
        [kind, *_said("one")],
        [brief, *_said("two")],
        [kind, *_said("one", "answer to one", "three")],
    ]
    assert json.loads(file.read_text()) == [kind, *_said("one", "answer to one")]
    said = capsys.readouterr().err
    assert f"(3 messages in {file})" in said and "(going on after 3 messages)" in said


def test_params_change_how_answers_are_drawn(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = "/params greedy yes max_new_tokens 4\nhello\n/reset\n/params greedy no seed 3 top_k 1\n/reset\nhello\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(asked))
    assert main(["chat", str(model)]) == 0
    output = capsys.readouterr()
    [greedy, likeliest] = output.out.splitlines()
    assert greedy == likeliest  # of one token to draw from
    assert "top_k 1" in output.err and "max_new_tokens 4" in output.err


def test_a_penalty_keeps_a_model_from_repeating_itself() -> None:
    kept = Sampling(repetition_penalty=1.3, min_p=0.1).generation()
    assert kept["repetition_penalty"] == 1.3 and kept["min_p"] == 0.1 and kept["do_sample"]
    assert Sampling().generation()["min_p"] is None
    assert Sampling(greedy=True).generation() == {"repetition_penalty": 1.0, "max_new_tokens": 256, "do_sample": False}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rest", "/rest: no such command; did you mean /reset?"),
        ("/xyz", "/xyz: no such command; /help lists them"),
        ("/params warmth 3", "/params: there is no warmth; there are temperature, top_k"),
        ("/params top_k many", "/params: top_k many: write a number"),
        ("/params top_k", "/params: top_k : write a number"),
        ("/params top_p 2", "--top_p 2.0: must be above 0 and at most 1"),
        ("/save", "/save: name a file"),
        ("/load nowhere.json", "/load: nowhere.json: no conversation that /save wrote"),
        ("/save no/talk.json", "/save: no/talk.json: No such file or directory; name a file in a folder"),
        ("/load recipe.json", "/load: recipe.json: no conversation that /save wrote"),
        ("/load talk.json", "/load: talk.json: every message has a role"),
    ],
)
def test_a_command_that_cannot_be_done(
    model: Path,
    line: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.json").write_text('{"seed": 1}')
    (tmp_path / "talk.json").write_text('[{"role": "robot", "content": "beep"}]')
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{line}\nhello\n"))
    assert main(["chat", str(model)]) == 2
    output = capsys.readouterr()
    assert f"fledge: {message}" in output.err and "Traceback" not in output.err and output.out == ""


def test_models_of_a_run_answer_side_by_side(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pretrain", "sft"):
        shutil.copytree(model, tmp_path / name)
        (tmp_path / name / "summary.json").write_text("{}")
    seen = _heard(monkeypatch)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    assert main(["chat", str(tmp_path), "--compare"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"[{name}] answer to {text}" for text in ("one", "two") for name in ("base", "sft")
    ]
    assert seen[2:] == [_said("one", "answer to one", "two")] * 2
    shutil.rmtree(tmp_path / "sft")
    assert main(["chat", str(tmp_path), "--compare"]) == 2
    assert "fewer than two of pretrain, sft, dpo in it are finished" in capsys.readouterr().err


def test_the_document_names_every_option_and_its_default() -> None:
    text = (SOURCE.parent / "docs" / "chat.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| `--(\w+)` \| (\S+) \|", text, re.MULTILINE))
    words = {None: "none", False: "no"}
    assert said == {
        one.name: f"{one.default:g}" if type(one.default) in (int, float) else words[one.default]
        for one in fields(Sampling)
    }


def test_without_a_seed_two_answers_differ(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = set()
    for _ in range(2):
        torch.manual_seed(5)  # where every process begins at the same number
        assert main(["chat", str(model), "-p", "hello", "--max_new_tokens", "32"]) == 0
        answers.add(capsys.readouterr().out)
    assert len(answers) == 2


def test_the_seed_holds_from_every_reset(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n/reset\none\ntwo\n"))
    assert main(["chat", str(model), *SHORT]) == 0
    output = capsys.readouterr().out
    half = len(output) // 2
    assert half > 2 and output[:half] == output[half:]


def test_ctrl_c_stops_the_answer_and_ctrl_d_the_program(model: Path) -> None:
    master, slave = os.openpty()
    process = subprocess.Popen(
        [*COMMAND, model, "--seed", "1", "--max_new_tokens", "40000"],
        env=ENVIRONMENT,
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        os.write(master, b"hello\n")
        assert process.stdout.read(12).startswith(b"> ")
        process.send_signal(signal.SIGINT)
        while b"(stopped)" not in (line := process.stderr.readline()):
            assert line, "ended without a word"
        os.write(master, b"\x04")
        rest, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        os.close(master)
        os.close(slave)
    assert process.returncode == 0
    assert rest.endswith(b"\n> \n")
    assert b"Traceback" not in errors


def test_a_long_conversation_forgets_its_beginning(
    changed: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(changed("config.json", max_position_embeddings=64))
    monkeypatch.setattr("sys.stdin", io.StringIO("one two three\n" * 3))
    assert main(["chat", folder, "--max_new_tokens", "40", "--seed", "1"]) == 0
    messages = capsys.readouterr().err
    assert "answers have at most 32 tokens, half of the model's context of 64" in messages
    assert "(forgetting the first 2 messages: the model's context is full)" in messages
    assert main(["chat", folder, "-p", "so " * 60]) == 2
    assert "the model has room for 32 beside the answer" in capsys.readouterr().err


def _said(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def _letters(messages: list[dict[str, str]]) -> int:
    return sum(len(message["content"]) for message in messages)


@pytest.mark.parametrize(("room", "kept"), [(15, 5), (14, 3), (9, 3), (8, 1), (3, 1)])
def test_history_is_cut_at_a_turn_of_the_user(room: int, kept: int) -> None:
    messages = _said("aaa", "bbb", "ccc", "ddd", "eee")
    assert fit(messages, _letters, room) == messages[-kept:]


def test_the_system_prompt_is_not_forgotten() -> None:
    system = [{"role": "system", "content": "ss"}]
    assert fit([*system, *_said("aaa", "bbb", "ccc")], _letters, 5) == [*system, *_said("ccc")]
    with pytest.raises(TurnTooLong, match="takes 5 tokens with the system prompt and the model has room for 4"):
        fit([*system, *_said("aaa", "bbb", "ccc")], _letters, 4)


def test_a_turn_that_never_fits() -> None:
    with pytest.raises(TurnTooLong, match="takes 3 tokens and the model has room for 2"):
        fit(_said("aaa", "bbb", "ccc"), _letters, 2)


def test_without_gradio_the_page_says_what_to_install(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["chat", str(model), "--web"]) == 2
    assert "--web: gradio is not installed; run: pip install 'fledge-lm[web]'" in capsys.readouterr().err


def test_the_page_answers_as_the_terminal_does(
    changed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked over HTTP, by gradio's own client, while the command waits for Ctrl-C."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # and back, when this is over
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder, options = str(changed("config.json", max_position_embeddings=64)), ["--max_new_tokens", "16"]
    assert main(["chat", folder, "-p", "hello", "--greedy", *options]) == 0
    wanted = capsys.readouterr().out.removesuffix("\n")
    settings = ("", 0.8, 0, 0.95, 0, 1, 16, "", True)

    def visit(_: Any) -> None:
        url = capsys.readouterr().err.split()[-4]
        assert url.startswith("http://127.0.0.1:")
        client = Client(url, verbose=False, analytics_enabled=False)
        *_, (_, _, _, file, chat) = client.submit("hello", *settings, api_name="/ask")
        assert [html.unescape(turn["content"][0]["text"]) for turn in chat] == ["hello", wanted]
        assert json.loads(Path(file).read_text())[0] == {"role": "user", "content": "hello"}
        *_, (box, _, said, _, chat) = client.submit("so " * 60, *settings, api_name="/ask")
        assert "the model has room for 48 beside the answer" in said["value"] and len(chat) == 2
        assert box["value"] == "so " * 60  # to be shortened, and not to be typed again
        *_, (_, _, said, _, _) = client.submit("so " * 8, *settings, api_name="/ask")
        assert said["value"] == "forgetting the first 2 messages: the model's context is full"
        assert httpx.get(url, headers={"Host": "example.org"}).status_code == 400
        assert main(["chat", folder, "--web", "--port", url.rstrip("/").rpartition(":")[2]]) == 2
        assert "no free port" in capsys.readouterr().err
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("fledge.chat.web.Event", type("Event", (), {"wait": visit}))
    assert main(["chat", folder, "--web", *options]) == 0


def test_no_character_comes_in_halves() -> None:
    data = "月🌕".encode() + b"\xff"
    written: list[str] = []
    pieces = _Pieces(lambda tokens: bytes(tokens).decode(errors="replace"), written.append)
    pieces.put(torch.tensor([[1, 2]]))  # the prompt
    for byte in data:
        pieces.put(torch.tensor([byte]))
    assert written == ["月", "🌕"]
    pieces.end()
    assert written == ["月", "🌕", "\ufffd"]
    assert pieces.text == "月🌕\ufffd"


def test_a_model_does_not_drive_the_terminal() -> None:
    assert _harmless("a\x1b[2Jb\r\n\tc　d") == "a\ufffd[2Jb\ufffd\n\tc　d"


def test_the_last_finished_model_of_a_run(tmp_path: Path) -> None:
    for name in ("sft", "dpo", "export"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        assert find_model(tmp_path / name) == tmp_path / name
    with pytest.raises(ValueError, match="none of export, dpo, sft in it is finished"):
        find_model(tmp_path)
    for name in ("sft", "dpo", "export"):
        (tmp_path / name / "summary.json").write_text("{}")
        assert find_model(tmp_path) == tmp_path / name


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    for folder, message in ((tmp_path, "no model to talk to"), (tmp_path / "x", "no such folder")):
        done = subprocess.run([*COMMAND, folder, "-p", "hi"], env=ENVIRONMENT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"fledge: {folder}: {message}")
        assert "give a" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "0"], "--temperature 0.0: must be above 0; use --greedy"),
        (["--top_p", "1.5"], "--top_p 1.5: must be above 0 and at most 1"),
        (["--max_new_tokens", "0"], "--max_new_tokens 0: must be at least 1"),
        (["--top_k", "-1"], "--top_k -1: must be at least 0"),
        (["--min_p", "1.5"], "--min_p 1.5: must be between 0 and 1"),
        (["--repetition_penalty", "0"], "--repetition_penalty 0.0: must be above 0"),
        (["--device", "quantum"], "--device quantum: not on this machine"),
        (["--port", "7860"], "chat: --port goes with --web, and -p without it"),
        (["--web"], "chat: --port goes with --web, and -p without it"),
    ],
)
def test_options_that_make_no_sense(
    model: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["chat", str(model), "-p", "hi", *options]) == 2
    assert f"fledge: {message}" in capsys.readouterr().err


def test_models_that_cannot_chat(changed: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed("config.json")
    (folder / "chat_template.jinja").unlink()
    assert main(["chat", str(folder), "-p", "hi"]) == 2
    assert f"{folder}: the tokenizer has no chat template; save one" in capsys.readouterr().err
    (folder / "model.safetensors").unlink()
    assert main(["chat", str(folder), "-p", "hi"]) == 2
    assert f"chat: {folder}: holds no model.safetensors; give" in capsys.readouterr().err


def test_a_model_without_a_stop_token_says_so(
    changed: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed("config.json", eos_token_id=None)
    GenerationConfig(pad_token_id=0).save_pretrained(folder)
    assert main(["chat", str(folder), "-p", "hi", "--max_new_tokens", "2"]) == 0
    assert "names no stop token" in capsys.readouterr().err
