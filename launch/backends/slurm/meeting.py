"""Find, before torchrun starts, an address at which each node of a job reaches the first node.

On some sites the host names of the nodes do not resolve on the nodes, or resolve to an address that other nodes cannot
reach. torchrun would then wait until its timeout, and its error would name neither the node nor the host name.
Therefore the first node listens at the port of the job, and every other node tries the names and addresses that the
batch script found. torchrun is given the one that worked.
"""

import contextlib
import ipaddress
import socket
import time
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Set

import psutil

from ftdist.base.errors import LaunchError

TRY_S = 5.0
"""Seconds for one attempt to connect."""
BETWEEN_TRIES_S = 0.2
LOOPBACK = "127.0.0.1"
READY = b"ready\n"
LONGEST = 1000
"""Largest number of characters of a message between two nodes."""


@dataclass(frozen=True)
class Meeting:
    """The addresses with which one node takes part in the run."""

    first: str
    """Address at which this node reaches the first node."""
    own: str
    """Address at which the other nodes reach this node."""


def receive(
    port: int, others: Set[str], node: str, timeout_s: float, keep: Optional[List[socket.socket]] = None
) -> Meeting:
    """Wait on the first node until all other nodes have connected.

    Args:
        port: TCP port to listen at. It is free again afterwards.
        others: names of the other nodes.
        node: name of this node.
        timeout_s: seconds within which they must connect.
        keep: a list to which the connections are added. None: they are closed.

    Raises:
        LaunchError: a node has not connected, or the port is taken. The message names the node.
    """
    if not others:
        return Meeting(LOOPBACK, LOOPBACK)
    deadline, own = time.monotonic() + timeout_s, ""
    came: Dict[str, socket.socket] = {}
    with _listen(port, node) as server, contextlib.ExitStack() as open_until_ready:
        while missing := others - set(came):
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
                open_until_ready.enter_context(connection)
                connection.settimeout(TRY_S)
                said = connection.makefile(errors="replace").readline(LONGEST)  # a port scanner may say anything
                name, _, address = said.strip().partition(" ")
            except TimeoutError:
                if time.monotonic() < deadline:  # something else has connected, and says nothing
                    continue
                raise LaunchError(
                    f"{node}: {', '.join(sorted(missing))} did not connect to {node}:{port} within {timeout_s:g} s",
                    "nodes that reach each other, and start within launch.nodes.join_timeout_s",
                    f"check {', '.join(sorted(missing))}, or exclude them from the job (--exclude=NODE)",
                ) from None
            except OSError:
                continue
            if name in others:
                came[name], own = connection, own or address
        for connection in came.values():
            with contextlib.suppress(OSError):
                connection.sendall(READY)
                if keep is None:
                    connection.recv(1)  # the other side closes first, so that the port is free here immediately
        if keep is not None:
            keep += came.values()
            for connection in keep:
                connection.settimeout(None)
            open_until_ready.pop_all()
    return Meeting(own, own)


def _listen(port: int, node: str) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise LaunchError(f"{node}: port {port} cannot be used: {error.strerror}", "a free port",
                          "ftdist resume RUN_DIR, which uses another port") from error  # fmt: skip


def names_of(first: str, suffix: Optional[str], more: Sequence[str]) -> List[str]:
    """Return the names and addresses of the first node, in the order in which they are tried.

    Args:
        first: the name that Slurm gives it.
        suffix: ``launch.slurm.address_suffix``.
        more: what else Slurm and the node know.
    """
    return list(dict.fromkeys([*([first + suffix] if suffix else []), first, *more]))


def join(
    names: Sequence[str], port: int, node: str, timeout_s: float, keep: Optional[List[socket.socket]] = None
) -> Meeting:
    """Connect to the first node, and wait until all nodes have connected.

    Args:
        names: names and addresses of the first node; the first one that can be reached is used.
        port: the port at which it listens.
        node: name of this node.
        timeout_s: seconds within which the first node must answer.
        keep: a list to which the connection is added. None: it is closed.

    Raises:
        LaunchError: the first node cannot be reached. The message names this node, and says why each address failed.
    """
    deadline = time.monotonic() + timeout_s
    why: Dict[str, str] = {}
    while True:
        resolved = 0
        for name in names:
            try:
                addresses = _resolve(name, port)
                resolved += 1
            except OSError as error:
                resolved += error.errno == socket.EAI_AGAIN  # the name server may answer later
                why[name] = f"does not resolve ({error.strerror})"
                continue
            for address in addresses:
                try:
                    return _meet_at(address, port, node, timeout_s, keep)
                except OSError as error:
                    why[name] = f"({address}): {error.strerror or error}"
        if not resolved or time.monotonic() > deadline:
            raise _unreachable(node, names, port, why)
        time.sleep(BETWEEN_TRIES_S)


def _unreachable(node: str, names: Sequence[str], port: int, why: Dict[str, str]) -> LaunchError:
    reasons = "; ".join(f"{name} {reason}" for name, reason in why.items())
    return LaunchError(
        f"{node} cannot reach the first node of the job, {names[0]}, at port {port}: {reasons}",
        "a name or address of the first node that all nodes reach",
        f"on {node}, `getent hosts {names[0]}` must print the NodeAddr that `scontrol show node {names[0]}` shows. "
        f"Correct this, or exclude {node} from the job: --exclude={node}",
    )


def _resolve(name: str, port: int) -> List[str]:
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _meet_at(address: str, port: int, node: str, timeout_s: float, keep: Optional[List[socket.socket]]) -> Meeting:
    with contextlib.ExitStack() as on_error:
        connection = on_error.enter_context(socket.create_connection((address, port), timeout=TRY_S))
        connection.sendall(f"{node} {address}\n".encode())
        connection.settimeout(timeout_s)
        if connection.makefile("rb").readline() != READY:
            raise OSError("the connection was closed")
        met = Meeting(address, str(connection.getsockname()[0]))
        if keep is not None:
            connection.settimeout(None)
            keep.append(connection)
            on_error.pop_all()
        return met


def gloo_interface(own: str) -> Optional[str]:
    """Return the network interface that gloo must be given, or None if it finds the right one itself.

    gloo uses the address that the name of the machine resolves to. If there is none, or if it is the loopback address
    as in Debian's /etc/hosts, other machines cannot reach it.

    Args:
        own: address at which the other nodes reach this node.
    """
    try:
        named = _resolve(socket.gethostname(), 0)
    except OSError:
        named = []
    loopback = ipaddress.ip_address(own).is_loopback
    if named and (loopback or not all(ipaddress.ip_address(place.split("%")[0]).is_loopback for place in named)):
        return None
    wanted = LOOPBACK if loopback else own
    for interface, addresses in psutil.net_if_addrs().items():
        if any(address.address == wanted for address in addresses):
            return interface
    return None
