"""A stand-in of W&B's server, as far as ``wandb agent`` uses it: it answers the agent and tells it what to run."""

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
