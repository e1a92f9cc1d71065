"""A model hub on this machine: repositories with branches and tags, large files apart, and the ways a hub fails."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml


OWNER = "bird"
LARGE = ".safetensors"


class Hub:
    """What the hub holds, and its mood.

    Attributes:
        mood: "well", "hanging", "rejecting" (commits), or the status that every request is answered with.
        after: the mood it falls into with the commit of that number, counted from 1.
        commits: repository and branch of each commit, in order.
        tokens: every Authorization header that came.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.mood: str | int = "well"
        self.after: dict[int, str | int] = {}
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()

    def environment(self, token: str) -> dict[str, str]:
        """Of a process that talks to it."""
        return {"HF_ENDPOINT": self.address, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def answer(self, value: Any = None, status: int = 200, data: bytes | None = None, **headers: str) -> None:
        body = json.dumps(value).encode() if data is None else data
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **{key.replace("_", "-"): its for key, its in headers.items()}}
        for key, its in headers.items():
            self.send_header(key, its)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b"".join(self.chunks())
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.mood == "hanging":
            time.sleep(3600)
        if isinstance(hub.mood, int):
            self.answer({"error": f"the hub is in no mood: {hub.mood}"}, hub.mood)
        elif path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or OWNER}/{asked['name']}"
            status = 409 if name in hub.repos else 200
            hub.repos.setdefault(name, {"main": {}})
            hub.private.setdefault(name, asked.get("visibility") == "private")
            self.answer({"url": f"{hub.address}/{name}"}, status)
        elif path == "api/validate-yaml":  # the head of a model card
            card = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            missing = [key for key in ("library_name", "pipeline_tag", "tags") if key not in card]
            self.answer({"errors": [{"message": f"no {key}"} for key in missing], "warnings": []})
        elif path.startswith("large/"):
            hub.large[path.removeprefix("large/")] = body
            self.answer({})
        elif path.startswith("api/models/"):
            self.of_model(path.removeprefix("api/models/").split("/"), body)
        elif "/resolve/" in path:
            self.resolve(path)
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for each in objects:
                each["actions"] = {"upload": {"href": f"{hub.address}/large/{each['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects})
        else:
            self.answer({"error": "not here"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = do

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def of_model(self, parts: list[str], body: bytes) -> None:
        hub, name, what = self.hub, "/".join(parts[:2]), parts[2:]
        if name not in hub.repos:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        repo = hub.repos[name]
        if what[:1] == ["branch"]:
            status = 409 if what[1] in repo else 200
            repo.setdefault(what[1], dict(repo["main"]))
            return self.answer({}, status)
        if what[:1] == ["tag"]:
            hub.tags.setdefault(name, {})[json.loads(body)["tag"]] = what[1]
            return self.answer({})
        if what[:1] == ["preupload"]:
            files = json.loads(body)["files"]
            modes = {True: "lfs", False: "regular"}
            said = [{**file, "uploadMode": modes[file["path"].endswith(LARGE)]} for file in files]
            return self.answer({"files": [{**file, "shouldIgnore": False} for file in said]})
        if what[:1] == ["commit"]:
            return self.commit(name, what[1], body)
        branch = what[1] if what[:1] in (["revision"], ["tree"]) else "main"
        if branch not in repo or what[:1] == ["tree"]:
            return self.answer({"error": "Not found"}, 404)
        files = [{"rfilename": path} for path in repo[branch]]
        return self.answer({"id": name, "modelId": name, "sha": _sha(repo[branch]), "siblings": files})

    def commit(self, name: str, branch: str, body: bytes) -> None:
        hub = self.hub
        if hub.mood == "rejecting":
            return self.answer({"error": "this repository takes no more"}, 422)
        for line in map(json.loads, body.splitlines()):
            its = line["value"]
            if line["key"] == "file":
                hub.repos[name][branch][its["path"]] = base64.b64decode(its["content"])
            elif line["key"] == "lfsFile":
                hub.repos[name][branch][its["path"]] = hub.large[its["oid"]]
        hub.commits.append((name, branch))
        hub.mood = hub.after.get(len(hub.commits), hub.mood)
        oid = _sha(hub.repos[name][branch])
        self.answer({"commitUrl": f"{hub.address}/{name}/commit/{oid}", "commitOid": oid})

    def resolve(self, path: str) -> None:
        name, _, rest = path.partition("/resolve/")
        branch, _, file = rest.partition("/")
        files = next((its for its in self.hub.repos.get(name, {}).values() if _sha(its) == branch), None)
        files = self.hub.repos.get(name, {}).get(branch, files)
        if files is None or file not in files:
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        etag = hashlib.sha256(files[file]).hexdigest()
        return self.answer(data=files[file], ETag=f'"{etag}"', X_Repo_Commit=_sha(files))


def _sha(files: dict[str, bytes]) -> str:
    """Forty digits that stand for a commit."""
    whole = hashlib.sha1(usedforsecurity=False)
    for path in sorted(files):
        whole.update(path.encode() + hashlib.sha256(files[path]).digest())
    return whole.hexdigest()


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub that runs meanwhile."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {}))
    server.daemon_threads = True
    server.block_on_close = False
    server.RequestHandlerClass.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.RequestHandlerClass.hub
    finally:
        server.shutdown()
        server.server_close()
