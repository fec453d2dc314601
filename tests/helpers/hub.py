"""A stand-in for the Hugging Face hub on this machine: it serves folders as models and data sets, and can go away."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, List, Optional

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FROM_HUB = ("model=hub", "model.hub=org/tiny", "model.tokenizer=null", "data=hub",
            "data.sources.hub.hub=org/chats", "data.heldout_share=0.2", "data.num_workers=1")  # fmt: skip
"""Settings of a run on what ``serve_tiny`` serves."""


def serve_tiny(folder: Path) -> "Hub":
    """Serve a random Llama with the bytes tokenizer as ``org/tiny``, and 60 chats as ``org/chats``."""
    from ftdist.data.tokenizer import bytes_tokenizer
    from tests.helpers.tiny import save_tiny_model

    model, data = folder / "models/org/tiny", folder / "datasets/org/chats"
    save_tiny_model(model)
    bytes_tokenizer().save_pretrained(model)
    (model / "pytorch_model.bin").write_text("not needed")
    data.mkdir(parents=True)
    chats = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a {n}"}]}
             for n in range(60)]  # fmt: skip
    (data / "train.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return Hub(folder)


class Hub:
    """Serves ``folder/models/ORG/NAME`` and ``folder/datasets/ORG/NAME``. ``asked`` lists the requests."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []  # type: Path, List[str]
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                found = hub.answer(self.path.partition("?")[0])
                body = b"" if found is None else found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(404 if found is None else 200)
                if found is None:
                    self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in self.path else "RepoNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """Refuse all connections from now on."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> Optional[Any]:
        """Return the content of a file, or an answer as JSON. None if there is nothing."""
        words = path.strip("/").split("/")
        if words[0] == "api":
            return self._about(words[1], "/".join(words[2:4]), words[4:])
        kind = words.pop(0) if words[0] == "datasets" else "models"
        file = self.folder / kind / words[0] / words[1] / "/".join(words[4:])
        return file.read_bytes() if words[2] == "resolve" and file.is_file() else None

    def _about(self, kind: str, name: str, more: List[str]) -> Optional[Any]:
        place = self.folder / kind / name
        if not place.is_dir():
            return None
        files = sorted(file for file in place.rglob("*") if file.is_file())
        listed: List[Dict[str, Any]] = [
            {"type": "file", "path": str(file.relative_to(place)), "rfilename": str(file.relative_to(place)),
             "size": file.stat().st_size, "oid": hashlib.sha1(file.read_bytes()).hexdigest()} for file in files
        ]  # fmt: skip
        if more[:1] == ["tree"] or more[:1] == ["paths-info"]:
            return listed
        return {"id": name, "sha": COMMIT, "siblings": listed, "private": False, "tags": [], "downloads": 0, "likes": 0}
