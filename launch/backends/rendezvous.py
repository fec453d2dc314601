"""The place where the ranks of several machines meet: a TCP port on the first machine."""

import platform
import socket
import time

from ftdist.base.errors import LaunchError
from ftdist.config.schema import RunConfig


def address(config: RunConfig) -> str:
    """Return the host name under which the other machines can reach the first machine."""
    nodes = config.launch.nodes
    return nodes.address or (nodes.hosts[0].rsplit("@", 1)[-1] if nodes.hosts else platform.node())


def check_port(config: RunConfig) -> None:
    """Check that the port is free on this machine.

    Raises:
        LaunchError: the port is taken.
    """
    port = config.launch.nodes.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise LaunchError(f"{platform.node()}: port {port} cannot be used: {error.strerror}", "a free port",
                              f"launch.nodes.port={port + 1}") from error  # fmt: skip


def wait_for_port(config: RunConfig, machine: str) -> None:
    """Wait until the first machine answers at its port, at most ``launch.nodes.join_timeout_s`` seconds.

    Args:
        machine: name of this machine, for the message.

    Raises:
        LaunchError: the first machine does not answer.
    """
    place = (address(config), config.launch.nodes.port)
    deadline, reason = time.monotonic() + config.launch.nodes.join_timeout_s, ""
    while time.monotonic() < deadline:
        try:
            socket.create_connection(place, timeout=5).close()
            return
        except OSError as error:
            reason = str(error.strerror or error)
        time.sleep(0.5)
    raise LaunchError(f"{platform.node()} ({machine}) cannot reach {place[0]}:{place[1]}: {reason}",
                      "ranks that run on the first machine, and an open port",
                      "start the first machine first, or set launch.nodes.address=NAME or "
                      "launch.nodes.port=PORT")  # fmt: skip
