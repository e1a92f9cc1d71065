"""The page of `fledge chat --web` in a real browser: Chromium, driven by selenium. `make web-test` runs it."""

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from fledge.cli import main

from .workspace import Workspace


pytestmark = pytest.mark.slow

REQUEST = "写一首五言绝句，题为《月》。"
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>[a](javascript:b) **c** $d$"
)
SECONDS = 20


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, which writes down what it asks for."""
    from selenium import webdriver

    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in programs.items() if not path]:
        pytest.fail(f"no {' and no '.join(missing)}: apt-get install chromium chromium-driver fonts-noto-cjk")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for option in ("--headless=new", "--no-sandbox", "--disable-background-networking", "--window-size=1280,900"):
        options.add_argument(option)
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs["chromedriver"]))
    yield driver
    driver.quit()


class Visitor:
    """What somebody does on the page."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get(url)
        self.until(lambda: self.all("#message textarea"))

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def until(self, happened: Callable[[], Any]) -> Any:
        end = time.monotonic() + SECONDS
        while not (found := happened()):
            assert time.monotonic() < end, f"it never happened; the page shows {self.turns()} and says {self.said()!r}"
            time.sleep(0.05)
        return found

    def say(self, text: str) -> None:
        self.all("#message textarea")[0].send_keys(text + "\n")

    def turns(self) -> list[str]:
        # In one go: the page replaces what it shows while an answer comes.
        script = "return [...document.querySelectorAll('.talk .message-content')].map(each => each.textContent.trim())"
        return self.browser.execute_script(script)

    def said(self) -> str:
        script = "return [...document.querySelectorAll('#said textarea')].map(each => each.value).join('')"
        return self.browser.execute_script(script)

    def is_idle(self) -> bool:
        return bool(self.all("#message .submit-button"))


@pytest.fixture
def visit(
    browser: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Path, Callable[[Visitor], None], list[str]], None]:
    """Run the command, and have somebody on its page while it waits for Ctrl-C."""

    # gradio keeps the folder of the first page of a process, and here there are several.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(folder: Path, does: Callable[[Visitor], None], options: list[str]) -> None:
        def wait(_: Any) -> None:
            does(Visitor(browser, capsys.readouterr().err.split()[-4]))
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr("fledge.chat.web.Event", type("Event", (), {"wait": wait}))
        assert main(["chat", str(folder), "--web", *options]) == 0

    return run


def test_the_page_answers_as_the_terminal_and_asks_no_other_host(
    chain: Workspace, visit: Callable[..., None], browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", str(chain.run_folder), "-p", REQUEST, "--greedy", "--max_new_tokens", "24"]) == 0
    wanted = capsys.readouterr().out.strip()

    def talk(visitor: Visitor) -> None:
        assert visitor.all("#title h1")[0].text == "tiny"
        assert len(visitor.all("button.asked")) == 4
        visitor.say(REQUEST)
        visitor.until(lambda: len(visitor.turns()) == 2 and visitor.is_idle())
        visitor.all("#new")[0].click()
        visitor.until(lambda: not visitor.turns())
        visitor.all("#greedy input")[0].click()
        visitor.say(REQUEST)
        visitor.until(lambda: visitor.turns() == [REQUEST, wanted] and visitor.is_idle())
        visitor.all("button.asked")[0].click()
        visitor.until(lambda: len(visitor.turns()) == 4 and visitor.is_idle())
        assert browser.save_screenshot(tmp_path / "page.png")

    visit(chain.run_folder, talk, ["--max_new_tokens", "24"])
    logged = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in logged if each["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))] == []


def test_an_answer_comes_as_it_is_written_and_stops_when_told(
    chain: Workspace, visit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def chatter(_: Any, __: Any, ___: Any, write: Callable[[str], None], stop: Event) -> str:
        text = ""
        while not stop.wait(0.1):
            write("月")
            text += "月"
        return text

    def talk(visitor: Visitor) -> None:
        visitor.say(REQUEST)
        visitor.until(lambda: len(visitor.turns()) == 2 and visitor.turns()[1])
        early = visitor.turns()[1]
        visitor.until(lambda: len(visitor.turns()[1]) > len(early) + 3)
        visitor.all("#message .stop-button")[0].click()
        visitor.until(lambda: visitor.said() == "stopped" and visitor.is_idle())
        late = visitor.turns()[1]
        time.sleep(0.5)
        assert visitor.turns()[1] == late
        visitor.say(REQUEST)  # and after it another
        visitor.until(lambda: len(visitor.turns()) == 4 and visitor.turns()[3])
        visitor.all("#new")[0].click()  # which ends it
        visitor.until(lambda: not visitor.turns() and visitor.is_idle())

    monkeypatch.setattr("fledge.chat.speaker.Speaker.answer", chatter)
    visit(chain.run_folder, talk, [])


def test_what_a_model_says_is_text(
    chain: Workspace, visit: Callable[..., None], browser: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved = tmp_path / "talk.json"
    saved.write_text(json.dumps([{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]))

    def hostile(_: Any, __: Any, ___: Any, write: Callable[[str], None], ____: Any) -> str:
        write(HOSTILE)
        return HOSTILE

    def talk(visitor: Visitor) -> None:
        visitor.say(HOSTILE)
        visitor.until(lambda: visitor.turns() == [HOSTILE] * 2 and visitor.is_idle())
        visitor.all("input[type=file]")[0].send_keys(str(saved))
        visitor.until(lambda: visitor.said() == "going on after 2 messages" and visitor.turns() == [HOSTILE] * 2)
        assert not visitor.all(".talk .message-content :is(img, script, a, strong)")
        assert browser.title == "tiny · fledge"

    monkeypatch.setattr("fledge.chat.speaker.Speaker.answer", hostile)
    visit(chain.run_folder, talk, [])


def test_models_answer_in_columns(chain: Workspace, visit: Callable[..., None]) -> None:
    def talk(visitor: Visitor) -> None:
        visitor.say(REQUEST)
        visitor.until(lambda: visitor.turns().count(REQUEST) == 3 and visitor.is_idle())
        columns = visitor.all(".talk")
        assert [each.text.split()[0] for each in columns] == ["base", "sft", "dpo"]
        assert (
            len({each.location["y"] for each in columns}) == 1 and len({each.location["x"] for each in columns}) == 3
        )

    visit(chain.run_folder, talk, ["--compare", "--max_new_tokens", "8"])


def test_asked_to_end_it_leaves_nothing(chain: Workspace, browser: Any, tmp_path: Path) -> None:
    command = ["fledge", "chat", str(chain.run_folder), "--web"]
    for folder in ("here", "temporary"):
        (tmp_path / folder).mkdir()
    place = Workspace(tmp_path / "here")
    process = place.start(*command, TMPDIR=str(tmp_path / "temporary"), HF_HOME=str(tmp_path / "hf"))
    while not (line := process.stderr.readline()).startswith("http"):
        assert line, "ended without an address"
    visitor = Visitor(browser, line.split()[0])
    visitor.say(REQUEST)
    visitor.until(lambda: len(visitor.turns()) == 2)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, errors) == (0, "", "")
    assert [*(tmp_path / "here").iterdir(), *(tmp_path / "temporary").iterdir()] == []
