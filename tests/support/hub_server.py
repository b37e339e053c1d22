"""A hub on loopback: the few endpoints by which huggingface_hub finds, downloads and uploads models."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMITS = {"main": "a" * 40, "v1": "b" * 40, "refs/pr/3": "c" * 40}
"""Commits by branch; every model of the server has these."""


@dataclass
class Hub:
    """A running server.

    Attributes:
        address: what HF_ENDPOINT must be.
        folders: hub id → folder of its files, which is the same at every commit.
        sent: bytes of files that were sent, by `owner/name/file`.
        commits: the commits whose files were asked for.
        token: the token that may write; any other gets 401.
        writers: the owners whose repositories that token may write to; others get 403.
        private: the repositories that were made private.
        calls: method and path of each request that may change something, in their order.
        uploaded: the files of the last commit.
        messages: for each commit its branch, its title, and whether it is a pull request.
    """

    address: str
    folders: dict[str, Path]
    sent: dict[str, int] = field(default_factory=dict)
    commits: set[str] = field(default_factory=set)
    token: str = ""
    writers: tuple[str, ...] = ("me",)
    private: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    messages: list[tuple[str, str, bool]] = field(default_factory=list)


@contextmanager
def serving(folders: dict[str, Path]) -> Iterator[Hub]:
    """Serves models, each at the commits of COMMITS, until the block ends."""
    hub = Hub("", folders)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        """Takes what changes a repository, as `create_repo`, `create_branch` and `create_commit` send it."""
        split = urlsplit(self.path)
        path, body = unquote(split.path), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.calls.append(f"POST {path}")
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path)
        made = json.loads(body) if path == "/api/repos/create" else {}
        owner = made.get("organization", "me") if made else (found[1].split("/")[0] if found else "me")
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._send(401, b'{"error": "Invalid credentials"}', {})
        elif owner not in self.hub.writers:
            self._send(403, b'{"error": "no rights"}', {})
        elif made:
            name = f"{owner}/{made['name']}"
            if name in self.hub.folders:
                self._send(409, json.dumps({"url": f"{self.hub.address}/{name}"}).encode(), {})
                return
            self.hub.folders[name] = Path("/nonexistent")
            if made.get("private") or made.get("visibility") == "private":
                self.hub.private.add(name)
            self._send(200, json.dumps({"url": f"{self.hub.address}/{name}"}).encode(), {})
        elif path == "/api/validate-yaml":
            self._send(200, b'{"errors": [], "warnings": []}', {})
        elif found is None or (found[2] == "commit" and found[1] not in self.hub.folders):
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif found[2] == "branch":
            self._send(200, b"{}", {})
        elif found[2] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._send(200, json.dumps({"files": files}).encode(), {})
        else:
            self._commit_of(found[1], found[3], body, "create_pr=1" in split.query)

    def _commit_of(self, name: str, branch: str, body: bytes, is_pull_request: bool) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines[1:]}
        self.hub.uploaded = files
        self.hub.messages.append((branch, lines[0]["value"]["summary"], is_pull_request))
        made = {"commitUrl": f"{self.hub.address}/{name}/commit/{'d' * 40}", "commitOid": "d" * 40}
        if is_pull_request:
            made["pullRequestUrl"] = f"{self.hub.address}/{name}/discussions/1"
        self._send(200, json.dumps(made).encode(), {})

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        named = "|".join(map(re.escape, self.hub.folders)) or "$"
        if found := re.fullmatch(rf"/api/models/({named})(?:/(revision|tree)/(.+?))?/?", path):
            name, kind, revision = found.groups()
            commit = _commit(revision or "main")
            if commit is None:
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                files = [_entry(self.hub.folders[name], file) for file in _files(self.hub.folders[name])]
                info = {"id": name, "sha": commit, "private": name in self.hub.private, "tags": [], "siblings": files}
                self._send(200, json.dumps(files if kind == "tree" else info).encode(), {})
        elif found := re.fullmatch(rf"/({named})/resolve/(.+?)/(.+)", path):
            name, revision, file = found.groups()
            self._file(name, _commit(revision), file)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _file(self, name: str, commit: str | None, file: str) -> None:
        if commit is None or file not in _files(self.hub.folders[name]):
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = (self.hub.folders[name] / file).read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"', "X-Repo-Commit": commit}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status = 200
        if wanted and self.command == "GET":
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            headers["Content-Range"], status = f"bytes {first}-{last}/{len(data)}", 206
            data = data[first : last + 1]
        if self.command == "GET":
            self.hub.commits.add(commit)
            self.hub.sent[f"{name}/{file}"] = self.hub.sent.get(f"{name}/{file}", 0) + len(data)
        self._send(status, data, headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command in ("GET", "POST"):
            self.wfile.write(data)


def _commit(revision: str) -> str | None:
    return revision if revision in COMMITS.values() else COMMITS.get(revision)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _entry(folder: Path, file: str) -> dict[str, object]:
    data = (folder / file).read_bytes()
    oid = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    return {"type": "file", "path": file, "rfilename": file, "size": len(data), "oid": oid, "blobId": oid}
