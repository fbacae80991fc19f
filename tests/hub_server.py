"""A small server on this machine that speaks as much of the protocols of Hugging Face and ModelScope as their clients need."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import attrs
import pytest

from mm.runtime.hubs import fetching

# files that are kept as LFS objects: the hub tells their SHA-256 and refers to its storage
LFS = (".safetensors", ".jsonl", ".pth", ".bin")


@attrs.define
class Repository:
    """A repository: revision -> path -> bytes. `main` and `master` are the default branch."""

    files: dict[str, bytes]
    older: dict[str, dict[str, bytes]] = attrs.field(factory=dict)
    gated: bool = False

    @property
    def commit(self) -> str:
        """The commit of the default branch."""
        return commit_of(self.files)

    def at(self, revision: str) -> dict[str, bytes] | None:
        """The files of a branch or commit, None if there is none of that name."""
        known = {commit_of(files): files for files in (self.files, *self.older.values())}
        return {**known, **self.older, "main": self.files, "master": self.files}.get(revision)


def commit_of(files: dict[str, bytes]) -> str:
    """The commit that has these files."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@attrs.define
class Hub:
    """The state of the server. `cuts`: each next file's connection is closed after so many bytes; `damaged`: other bytes are
    sent. `requests` has (method, path, Range) of every request."""

    address: str = ""
    repositories: dict[tuple[str, str], Repository] = attrs.field(factory=dict)
    requests: list[tuple[str, str, str]] = attrs.field(factory=list)
    cuts: list[int] = attrs.field(factory=list)
    damaged: bool = False

    def add(self, kind: str, name: str, files: dict[str, bytes | str]) -> Repository:
        """Add or replace a repository: `add("dataset", "owner/name", {...})`."""
        content = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
        self.repositories[kind, name] = repository = Repository(content)
        return repository

    def bodies(self) -> list[tuple[str, str]]:
        """(last part of the path, Range) of every request for bytes of the storage."""
        return [(unquote(p).rpartition("/")[2], span) for method, p, span in self.requests if method == "GET" and is_body(p)]


def is_body(path: str) -> bool:
    """True for a request for the bytes of a file."""
    return "/resolve/" in path or path.startswith("/storage/") or "FilePath=" in path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ClassVar[Hub]

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range", "")))
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query).items()}
        if found := re.fullmatch(r"/api/v1/(model|dataset)s/([^/]+/[^/]+)/repo(/files|/tree)?", path):
            self._modelscope(*found.groups(), query)
        elif found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(*found.groups())
        elif found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve("dataset" if found[1] else "model", *found.groups()[1:])
        elif found := re.fullmatch(r"/storage/(model|dataset)/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            repository = self.hub.repositories[found[1], found[2]]
            self._bytes((repository.at(found[3]) or {})[found[4]], {})
        else:
            self._json(404, {"Message": "no such address", "Success": False})

    # ---- Hugging Face

    def _repository(self, kind: str, name: str) -> Repository | None:
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            self._json(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return repository

    def _info(self, kind: str, name: str, revision: str | None) -> None:
        if (repository := self._repository(kind, name)) is None:
            return
        if (files := repository.at(revision or "main")) is None:
            self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return
        if repository.gated:
            self._json(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
            return
        siblings = [
            {
                "rfilename": path, "size": len(data), "blobId": _git(data),
                **({"lfs": {"sha256": _sha(data), "size": len(data), "pointerSize": 130}} if path.endswith(LFS) else {}),
            }
            for path, data in files.items()
        ]  # fmt: skip
        values = {"id": name, "sha": commit_of(files), "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}
        self._json(200, {**values, "private": False, "disabled": False, "gated": False})

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        if (repository := self._repository(kind, name)) is None:
            return
        data = (repository.at(revision) or {}).get(path)
        if data is None:
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": commit_of(repository.at(revision) or {}), "Accept-Ranges": "bytes"}
        if path.endswith(LFS):
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{_sha(data)}"'}
            # another name of this machine: a token of the hub must not go there
            storage = self.hub.address.replace("127.0.0.1", "localhost")
            self._send(302, b"", {**headers, "Location": f"{storage}/storage/{kind}/{name}/{revision}/{path}"})
            return
        self._bytes(data, {**headers, "ETag": f'"{_git(data)}"'})

    # ---- ModelScope

    def _modelscope(self, kind: str, name: str, what: str | None, query: dict[str, str]) -> None:
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            self._json(404, {"Code": 10010205001, "Message": f"record not found: {name}", "Success": False})
            return
        if repository.gated:
            self._json(403, {"Code": 10010205003, "Message": "access denied", "Success": False})
            return
        files = repository.at(query.get("Revision", "master"))
        if files is None:
            self._json(404, {"Code": 10010205002, "Message": "the revision does not exist", "Success": False})
        elif what:
            listed = [
                {"Path": path, "Name": path.rpartition("/")[2], "Type": "blob", "Size": len(data), "Sha256": _sha(data)}
                for path, data in files.items()
            ]
            page = listed if query.get("PageNumber", "1") == "1" else []
            self._json(200, {"Code": 200, "Success": True, "Data": {"Files": page, "LatestCommitter": {"Id": ""}}})
        elif (data := files.get(query["FilePath"])) is not None:
            self._bytes(data, {"ETag": f'"{_sha(data)}"'})
        else:
            self._json(404, {"Code": 404, "Message": "no such file", "Success": False})

    # ---- answers

    def _bytes(self, data: bytes, headers: dict[str, str]) -> None:
        """A file, or the part of it that is asked for."""
        if self.hub.damaged:
            data = bytes(len(data))
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(span[1]) if span else 0
        body = data[start : int(span[2]) + 1 if span and span[2] else None]
        if span:
            headers = {**headers, "Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(data)}"}
        self._send(206 if span else 200, body, {**headers, "Accept-Ranges": "bytes"}, cut=True)

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut and self.hub.cuts:
            self.wfile.write(body[: self.hub.cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """The server, until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let both clients talk to an address, as a new process would."""
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", address)
    again(monkeypatch)


def again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a new process would not know."""
    monkeypatch.setattr(fetching, "_listed", {})
