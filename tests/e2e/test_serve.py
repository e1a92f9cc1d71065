"""`transformers serve` answers an OpenAI client from the export: no code of fledge between the two."""

import socket
import time
from collections.abc import Iterator

import pytest
from transformers import pipeline

from .test_export import REQUEST
from .workspace import Workspace, kill


openai = pytest.importorskip("openai", reason="pip install 'fledge-lm[serve]'")
pytest.importorskip("fastapi", reason="pip install 'fledge-lm[serve]'")
pytestmark = pytest.mark.slow

START_SECONDS = 120
NEW_TOKENS = 32


@pytest.fixture
def client(chain: Workspace) -> Iterator["openai.OpenAI"]:
    """Of a server on a free port of this machine, which is killed at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = chain.start("transformers", "serve", "runs/tiny/export", "--host", "127.0.0.1", "--port", str(port))
    try:
        until = time.monotonic() + START_SECONDS
        while not answers(port):
            assert server.poll() is None and time.monotonic() < until, "\n".join(kill(server))[-3000:]
            time.sleep(0.5)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60, max_retries=0)
    finally:
        kill(server)


def answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def test_a_client_gets_what_the_pipeline_writes(client: "openai.OpenAI", chain: Workspace) -> None:
    folder = str(chain.run_folder / "export")
    messages = [{"role": "user", "content": REQUEST}]
    write = pipeline("text-generation", model=folder)
    wanted = write(messages, do_sample=False, max_new_tokens=NEW_TOKENS)[0]["generated_text"][-1]["content"]

    reply = client.chat.completions.create(
        model="runs/tiny/export", messages=messages, temperature=0.0, max_tokens=NEW_TOKENS
    )
    assert reply.choices[0].message.content == wanted

    pieces = client.chat.completions.create(
        model="runs/tiny/export", messages=messages, temperature=0.0, max_tokens=NEW_TOKENS, stream=True
    )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == wanted
