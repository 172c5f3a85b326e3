"""A hub of models on loopback: what huggingface_hub asks it to show, to fetch and to take in."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

ERRORS = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}


class ModelHub:
    """What a test sees and sets."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        """Files by name, by commit, by OWNER/NAME."""
        self.refs: dict[str, dict[str, str]] = {}
        """Commits by branch or tag, by OWNER/NAME."""
        self.private: set[str] = set()
        self.token, self.url = "", ""
        """What opens all of it."""
        self.status = 0
        """What it answers instead of anything."""
        self.requests: list[str] = []

    def add(self, repository: str, folder: Path, *, revision: str = "main") -> str:
        """Put a folder's files into a repository -> the commit."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return self.commit(repository, files, revision=revision)

    def commit(self, repository: str, files: dict[str, bytes], *, revision: str = "main") -> str:
        """Put files into a repository -> the commit."""
        digest = hashlib.sha1(repository.encode())
        for name in sorted(files):
            digest.update(name.encode() + files[name])
        commit = digest.hexdigest()
        self.repositories.setdefault(repository, {})[commit] = files
        self.refs.setdefault(repository, {})[revision] = commit
        return commit

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes] | None:
        """What a revision holds; None: there is none."""
        commits = self.repositories.get(repository, {})
        return commits.get(self.refs.get(repository, {}).get(revision, revision))

    @property
    def fetched(self) -> set[str]:
        """Names of files that were asked for."""
        found = (path.partition("/resolve/")[2] for path in self.requests if "/resolve/" in path)
        return {path.partition("/")[2] for path in found}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ModelHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, self._begin()
        if path is None:
            return
        if path == "/api/whoami-v2":
            self._send({"name": "me", "type": "user", "orgs": []})
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            repository, _, rest = path[1:].partition("/resolve/")
            revision, _, name = rest.partition("/")
            content = (hub.files(repository, revision) or {}).get(name)
            if content is None:
                self._refuse(404, error="EntryNotFound")
                return
            commit = hub.refs[repository].get(revision, revision)
            etag = hashlib.sha256(content).hexdigest()
            self._send_bytes(content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
        else:
            self._refuse(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self._begin()
        if path is None:
            return
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif "/preupload/" in path:
            names = [one["path"] for one in json.loads(body)["files"]]
            told = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            self._send({"files": told})
        elif "/commit/" in path:
            self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        elif path.endswith("/validate-yaml") or path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        else:
            self._refuse(404)

    def _begin(self) -> str | None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(path)
        if hub.status or (hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}"):
            self._refuse(hub.status or 401)
            return None
        return path

    def _api(self, rest: str) -> None:
        parts = rest.split("/", 3)
        repository, what = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "revision"
        rest = parts[3] if len(parts) > 3 else "main"
        if repository not in self.hub.repositories:
            self._refuse(404)
            return
        revision = rest.partition("/")[0] if what == "tree" else rest
        files = self.hub.files(repository, revision)
        if files is None:
            self._refuse(404, error="RevisionNotFound")
        elif what == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": "1" * 40}
                for name, content in files.items()
            ]
            self._send(entries)
        else:
            sha = self.hub.refs[repository].get(revision, revision)
            siblings = [{"rfilename": name, "size": len(files[name])} for name in files]
            self._send({"id": repository, "sha": sha, "tags": [], "siblings": siblings})

    def _create(self, asked: dict) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.repositories:
            self._send({"url": f"{self.hub.url}/{name}"}, status=409)
            return
        self.hub.commit(name, {".gitattributes": b""})
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(name)
        self._send({"url": f"{self.hub.url}/{name}"})

    def _commit(self, repository: str, body: bytes) -> None:
        files = dict(self.hub.files(repository) or {})
        for line in body.decode().splitlines():
            one = json.loads(line)
            if one["key"] == "file":
                files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            elif one["key"] == "deletedFile":
                files.pop(one["value"]["path"])
        commit = self.hub.commit(repository, files)
        self._send(
            {
                "success": True,
                "commitOid": commit,
                "commitUrl": f"{self.hub.url}/{repository}/commit/{commit}",
            }
        )

    def _refuse(self, status: int, *, error: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", error or ERRORS.get(status, ""))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: object, *, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self._send_bytes(body, {"Content-Type": "application/json"}, status=status)

    def _send_bytes(self, body: bytes, headers: dict[str, str], *, status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def model_hub() -> Iterator[ModelHub]:
    """An empty hub, until the block ends."""
    hub = ModelHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
