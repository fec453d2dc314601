"""The nodes of a job find each other at an address that works, or say which name does not."""

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import List

import pytest

from ftdist.base.errors import LaunchError
from ftdist.launch.attempt import failure
from ftdist.launch.backends.slurm import meeting
from ftdist.run.rundir import RunDir
from tests.helpers.ranks import free_port

UNKNOWN = "node1.invalid"
"""A name that never resolves (RFC 6761)."""


def test_nodes_meet_at_the_first_address_that_works() -> None:
    port = free_port()
    with ThreadPoolExecutor(3) as pool:
        head = pool.submit(meeting.receive, port, {"n2", "n3"}, "n1", 20)
        for text in (b"who\n", b"\x16\x03\xff\n", b"GET / HTTP/1.0\r\n\r\n"):  # a port scanner
            _say(port, text)
        found = list(pool.map(lambda name: meeting.join([UNKNOWN, "127.0.0.1"], port, name, 20), ["n2", "n3"]))
        first = head.result()
    assert first == meeting.Meeting("127.0.0.1", "127.0.0.1") and found == [first, first]
    socket.create_server(("", port)).close()  # torchrun can use the port
    assert meeting.receive(port, set(), "n1", 20).own == "127.0.0.1"  # a single node needs no name


def test_a_name_in_the_fast_network_is_tried_first() -> None:
    more = ["10.0.0.1", "node1"]
    assert meeting.names_of("node1", None, more) == ["node1", "10.0.0.1"]
    assert meeting.names_of("node1", "i", more) == ["node1i", "node1", "10.0.0.1"]


def _say(port: int, text: bytes) -> None:
    """Connect as something that is no node, as soon as the first node listens."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(text)
            return
        time.sleep(0.01)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("names", "seconds", "says"),
    [
        ([UNKNOWN], 3600, [f"n2 cannot reach the first node of the job, {UNKNOWN}", f"{UNKNOWN} does not resolve"]),
        ([UNKNOWN, "127.0.0.1"], 0.1, [f"{UNKNOWN} does not resolve", "127.0.0.1 (127.0.0.1): Connection refused"]),
    ],
)
def test_a_node_that_cannot_reach_the_first_is_named_with_every_name(
    names: List[str], seconds: float, says: List[str]
) -> None:
    """At once, if no name resolves."""
    with pytest.raises(LaunchError) as error:
        meeting.join(names, free_port(), "n2", seconds)
    assert all(text in str(error.value) for text in says), error.value


def test_a_node_that_does_not_connect_is_named() -> None:
    with pytest.raises(LaunchError, match="n1: n2, n3 did not connect to n1:"):
        meeting.receive(free_port(), {"n2", "n3"}, "n1", 0.1)


def test_the_message_of_a_node_is_the_message_of_the_run(tmp_path: Path) -> None:
    run, log = RunDir(tmp_path), tmp_path / "node-1.attempt-0.log"
    run.logs.mkdir()
    log.write_text("error: n2 cannot reach n1\n  expected: a name\n  fix:      getent\nsrun: error\n")
    assert failure.ended_from_outside(run, 0, [log], 143) == ""
    found = failure.explain_failure(run, 0, [log], 1)
    assert str(found) == f"n2 cannot reach n1\n  expected: a name\n  fix:      getent\n  logs: {run.logs}"


def test_gloo_gets_an_interface_only_if_the_host_name_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: UNKNOWN)
    assert meeting.gloo_interface("127.0.1.1") == meeting.gloo_interface("127.0.0.1") is not None
    monkeypatch.setattr(socket, "gethostname", lambda: "127.0.1.1")  # as in Debian's /etc/hosts
    assert meeting.gloo_interface("127.0.1.1") is None and meeting.gloo_interface("192.0.2.1") is None


def test_tasks_that_stay_connected_see_the_end_of_another() -> None:
    port, kept, mine = free_port(), [], []  # type: ignore[var-annotated]
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(meeting.join, ["127.0.0.1"], port, "task-1", 20, mine)
        meeting.receive(port, {"task-1"}, "n1", 20, kept)
        other.result()
    socket.create_server(("", port)).close()  # the store of rank 0 can use the port meanwhile
    mine[0].close()
    assert len(kept) == 1 and kept[0].recv(1) == b""
    kept[0].close()
