"""Stand-ins of W&B's server: for ``wandb agent``, which is told what to run, and for ``wandb sync``."""

import gzip
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, Iterator, List

Commands = Callable[[Dict[str, bool]], List[Dict[str, Any]]]
"""What the server wants an agent to do, given the runs that the agent says are under way."""


class SweepServer:
    """Answers the queries of an agent. ``unknown`` holds the queries that it could not answer."""

    def __init__(self, sweep: str, config: str, commands: Commands) -> None:
        """
        Args:
            sweep: Name of the sweep.
            config: The sweep's config, as YAML.
            commands: Called at each heartbeat of the agent.
        """
        self._sweep, self._config, self._commands = sweep, config, commands
        self.url = ""
        self.unknown: List[str] = []

    def answer(self, query: str, variables: Dict[str, Any]) -> Dict[str, Any]:
        """Return the data of the answer to a query in GraphQL."""
        if "agentHeartbeat" in query:
            running = json.loads(variables["runState"])
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(self._commands(running))}}
        if "createAgent" in query:
            assert variables["sweep"] == self._sweep
            return {"createAgent": {"agent": {"id": "agent"}}}
        if "SweepWithRuns" in query:
            sweep = {"id": "id", "name": self._sweep, "config": self._config, "runs": {"edges": []}}
            return {"project": {"sweep": sweep}}
        if "viewer" in query:
            return {"viewer": {"id": "id", "entity": "me", "username": "me", "teams": {"edges": []}, "flags": "{}"}}
        self.unknown.append(query)
        return {}


@contextmanager
def serving(server: SweepServer) -> Iterator[SweepServer]:
    """Answer at a free port of this machine inside the ``with`` block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"data": server.answer(asked["query"], asked.get("variables") or {})}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            http.shutdown()


ARTIFACT = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": None}}


@contextmanager
def receiving() -> Iterator[tuple[str, List[Dict[str, Any]]]]:
    """Receive the run that ``wandb sync`` uploads. Gives the address of the server and the records of the history."""
    history: List[Dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent = json.loads(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            for line in sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
                history.append(json.loads(line))
            self._answer({"data": self._data(sent["query"], sent.get("variables") or {})} if "query" in sent else {})

        def _data(self, query: str, variables: Dict[str, Any]) -> Dict[str, Any]:
            if "upsertBucket" in query:
                project = {"id": "p", "name": "project", "entity": {"id": "e", "name": "me"}}
                bucket = {
                    "id": "b",
                    "name": variables["name"],
                    "displayName": "run",
                    "config": "{}",
                    "project": project,
                }
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            if "createRunFiles" in query:
                files = [{"name": name, "uploadUrl": f"{self._url}/{name}"} for name in variables["files"]]
                return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
            return {"createArtifact": {"artifact": ARTIFACT}} if "createArtifact" in query else {}

        @property
        def _url(self) -> str:
            return f"http://{self.headers['Host']}"

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer({})

        def _answer(self, data: Dict[str, Any]) -> None:
            body = json.dumps(data).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{http.server_port}", history
        finally:
            http.shutdown()
