"""The page that `fledge chat --web` serves. Imports gradio, which takes seconds.

Nothing on it comes from another host: its fonts are those of the reader's system. What a model, a file or the user
said is shown as text, never as HTML or Markdown.
"""

import json
import traceback
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields
from html import escape
from pathlib import Path
from tempfile import mkdtemp
from threading import Thread
from typing import Any

import gradio as gr

from fledge.results.numbers import short

from .history import Messages
from .sampling import Sampling
from .session import Session
from .speaker import Speaker


EXAMPLES = 4
FRAME_SECONDS = 0.05
IN_TURN = {"concurrency_id": "models", "concurrency_limit": 1, "show_progress": "hidden"}
"""Of whatever the pages ask, one at a time has the models."""
FONTS = ("Segoe UI", "Helvetica Neue", "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
THEME = gr.themes.Default(primary_hue="emerald", font=[gr.themes.Font(name) for name in FONTS]).set(
    block_info_text_color="*neutral_500", block_info_text_color_dark="*neutral_400"
)
CSS = """
.gradio-container > main { width: 100%; max-width: 1280px; margin: 0 auto; padding: 1rem !important; }
#title h1 { margin: 0; font-size: 1.6rem; }
#title p { margin: 0; opacity: .7; }
.talk .message-content { white-space: pre-wrap; font-size: 1rem; line-height: 1.7; }
.talk button[aria-label=Clear], .talk button[title=Clear] { display: none; }
#said, #said * { border: none; background: none; box-shadow: none; }
#said textarea { padding: 0 .4rem; opacity: .8; }
.asked { font-weight: normal; white-space: normal; }
"""


@dataclass
class Talk:
    """One page's conversations: what the models are told, and all that the page shows of it, by speaker."""

    session: Session
    shown: dict[str, Messages]


class Page:
    """The components of the page, and what they do.

    Args:
        folder: the run or model folder that gives the page its name and its examples.
        speakers: who answers, side by side.
        sampling, system: where the settings begin.
        own: a folder for the conversations to be downloaded.
    """

    def __init__(
        self, folder: Path, speakers: dict[str, Speaker], sampling: Sampling, system: str | None, own: Path
    ) -> None:
        self.speakers, self.sampling, self.own = speakers, sampling, own
        name, alone = folder.resolve().name, len(speakers) == 1  # a file has one conversation
        sizes = ", ".join(f"{each} {short(its.size)}".strip() for each, its in speakers.items())
        with gr.Blocks(title=f"{name} · fledge", analytics_enabled=False) as self.blocks:
            self.talk = gr.State()
            gr.HTML(f"<h1>{escape(name)}</h1><p>{escape(sizes)} parameters</p>", elem_id="title")
            with gr.Row():
                with gr.Column(scale=3, min_width=320):
                    with gr.Row():
                        self.chats = {each: chatbot(each, "60vh" if alone else "45vh") for each in speakers}
                    self.said = gr.Textbox(
                        show_label=False, container=False, interactive=False, visible=False, elem_id="said"
                    )
                    self.message = gr.Textbox(
                        placeholder="Say something",
                        show_label=False,
                        submit_btn=True,
                        elem_id="message",
                    )
                    with gr.Row():
                        examples = [
                            gr.Button(prompt, size="sm", min_width=400, elem_classes="asked")
                            for prompt in examples_of(folder)
                        ]
                with gr.Column(scale=1, min_width=300):
                    new = gr.Button("New conversation", size="md", elem_id="new")
                    with gr.Row():
                        self.save = gr.DownloadButton("Save", size="md", visible=alone, min_width=80, elem_id="save")
                        load = gr.UploadButton("Load", size="md", visible=alone, min_width=80, elem_id="load")
                    self.system = gr.Textbox(
                        system or "", label="system", info="the system prompt; another begins anew", elem_id="system"
                    )
                    settings = [setting(one, getattr(sampling, one.name), speakers) for one in fields(Sampling)]
            self.outputs = [self.talk, self.message, self.system, self.said, self.save, *self.chats.values()]
            for event, text in [(self.message.submit, self.message), *((each.click, each) for each in examples)]:
                event(self.ask, [self.talk, text, self.system, *settings], self.outputs, **IN_TURN)
            self.message.stop(stop, self.talk, queue=False)
            # An answer that is under way ends before its conversation does.
            new.click(stop, self.talk, queue=False).then(self.begin, self.system, self.outputs, **IN_TURN)
            load.upload(stop, self.talk, queue=False).then(self.go_on, load, self.outputs, **IN_TURN)

    def ask(self, talk: Talk | None, text: str, system: str, *settings: Any) -> Iterator[dict[Any, Any]]:
        """Have every speaker answer `text`, and show the answers as they come."""
        talk = talk or self.new_talk(system)
        session, said, answers = talk.session, [], {}
        yield self.view(talk, []) | {self.message: gr.Textbox("", submit_btn=False, stop_btn=True)}
        box = gr.Textbox(submit_btn=True, stop_btn=False)
        try:
            set_to = dict(zip((one.name for one in fields(Sampling)), settings, strict=True))
            seed = set_to.pop("seed").strip()
            session.sampling = Sampling(**set_to).changed(["seed", seed] if seed else [])
            if system.strip() != (session.system or ""):
                said.append(session.command(f"/system {system}"))
                talk.shown = {name: [] for name in self.speakers}
            if not any(talk.shown.values()):
                session.reset()  # draws as from the beginning, with the seed that is set now
            for _ in speak(session, text, answers, said):
                yield self.view(talk, said, {name: pair(text, answer) for name, answer in answers.items()})
            if session.stop.is_set():
                said.append("stopped")
        except Exception as error:
            if not isinstance(error, ValueError):
                traceback.print_exc()
            answers = dict([*answers.items()][:-1])  # the last one has no answer
            said, box = [str(error)], gr.Textbox(text, submit_btn=True, stop_btn=False)
        for name, answer in answers.items():
            talk.shown[name] += pair(text, answer)
        yield self.view(talk, said) | {self.message: box, self.save: self.file(talk)}

    def begin(self, system: str) -> dict[Any, Any]:
        """A new conversation."""
        return self.view(self.new_talk(system), []) | {self.save: None}

    def go_on(self, file: str) -> dict[Any, Any]:
        """A conversation that was saved, here or in the terminal."""
        talk = self.new_talk("")
        try:
            said = talk.session.command(f"/load {file}")
        except ValueError as error:
            return {self.said: gr.Textbox(str(error), visible=True)}
        for name, history in talk.session.histories.items():
            talk.shown[name] = [message for message in history if message["role"] != "system"]
        return self.view(talk, [said]) | {self.save: self.file(talk), self.system: talk.session.system or ""}

    def new_talk(self, system: str) -> Talk:
        """Of a page that has none yet, or begins anew."""
        return Talk(
            Session(self.speakers, self.sampling, system.strip() or None), {name: [] for name in self.speakers}
        )

    def view(self, talk: Talk, said: list[str], coming: dict[str, Messages] | None = None) -> dict[Any, Any]:
        """What the page shows: the conversations, the answers that are still coming, and what is said about them."""
        chats = {chat: as_text(talk.shown[name] + (coming or {}).get(name, [])) for name, chat in self.chats.items()}
        return {self.talk: talk, self.said: gr.Textbox("\n".join(said), visible=bool(said)), **chats}

    def file(self, talk: Talk) -> str | None:
        """The conversation as /save writes it; None of several."""
        if len(self.speakers) > 1:
            return None
        path = Path(mkdtemp(dir=self.own)) / "conversation.json"
        talk.session.command(f"/save {path}")
        return str(path)


def speak(session: Session, text: str, answers: dict[str, str], said: list[str]) -> Iterator[None]:
    """Fill `answers`, one speaker after the other, and `said`, in another thread; comes back every few moments.

    Raises:
        ValueError: as `Session.reply` does. The last of `answers` is then none.
    """
    failed: list[Exception] = []

    def answer(name: str) -> None:
        def write(piece: str) -> None:
            answers[name] += piece

        answers[name] = ""
        session.reply(name, text, write, said.append)

    def run() -> None:
        try:
            for name in session.speakers:
                if not session.stop.is_set():
                    answer(name)
        except Exception as error:
            failed.append(error)

    session.stop.clear()
    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(FRAME_SECONDS)
            yield
    except GeneratorExit:  # the page was closed
        session.stop.set()
        raise
    if failed:
        raise failed[0]


def stop(talk: Talk | None) -> None:
    """End the answer that is under way."""
    if talk:
        talk.session.stop.set()


def pair(text: str, answer: str) -> Messages:
    """A turn."""
    return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def as_text(messages: Messages) -> Messages:
    """What Gradio shows as this very text: without Markdown it still takes it for HTML."""
    return [{**message, "content": escape(message["content"], quote=False)} for message in messages]


def chatbot(name: str, height: str) -> gr.Chatbot:
    """A conversation, as plain text; without a button to copy it, which would copy what `as_text` escaped."""
    look = {"height": height, "min_width": 280, "buttons": [], "feedback_options": None, "elem_classes": "talk"}
    return gr.Chatbot(label=name, show_label=bool(name), render_markdown=False, **look)


def setting(one: Field, value: Any, speakers: dict[str, Speaker]) -> gr.components.Component:
    """Where a field of Sampling is set."""
    about = {"label": one.name, "info": one.metadata["text"], "elem_id": one.name}
    if one.type is bool:
        return gr.Checkbox(value, **about)
    if one.metadata["slider"] is None:
        # A Number that is empty reaches us as 0.
        return gr.Textbox("" if value is None else str(value), placeholder="none", **about)
    least, most, step = one.metadata["slider"]
    if one.name == "max_new_tokens":
        most = min([most, *(each.context // 2 for each in speakers.values() if each.context)])
        value = min(value, most)
    precision = 0 if one.type is int else None
    return gr.Slider(min(least, value), max(most, value), value, step=step, precision=precision, **about)


def examples_of(folder: Path) -> list[str]:
    """A few requests that the run was evaluated on: of different forms, the shortest of each."""
    for run in (folder, folder.parent):
        if (path := run / "evaluate" / "samples.jsonl").is_file():
            with path.open(encoding="utf-8") as file:
                rows = sorted(map(json.loads, file), key=lambda row: len(row["prompt"]), reverse=True)
            return list({row["form"]: row["prompt"] for row in rows}.values())[:EXAMPLES]
    return []
