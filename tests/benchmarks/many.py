"""Many kernels over many connections on loopback: how latency and throughput hold as they grow."""

from __future__ import annotations

import functools
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import zmq

from .conversation import LIMIT, Conversation, NoAnswerError, ended, heard_on
from .loopback import MEGABYTE, Kernel, Loopback, loopback
from .samples import DIRECT, OURS, SSH, Row, Sample, Unit
from .timing import by_turns

PART = "many"
LINES = 10
STAGES = (1, 10, 50, 100)
ROUNDS = 40
# Seconds.
BUSY = 3.0
Connections = Sequence[Mapping[str, Any]]


class Crowd:
    """A client for each of many kernels."""

    def __init__(self, clients: Sequence[Conversation]) -> None:
        self._clients = clients
        self._poller = zmq.Poller()
        self._sockets: dict[zmq.Socket[bytes], tuple[Conversation, str]] = {}
        for client in clients:
            for channel, socket in client.sockets.items():
                self._poller.register(socket, zmq.POLLIN)
                self._sockets[socket] = (client, channel)

    def run(self, code: str, seconds: float = 0.0) -> int:
        """Run a cell in all kernels at once, again and again for so many seconds, and return how many there were.

        :raises NoAnswerError: when a kernel falls silent.
        """
        until = time.perf_counter() + seconds
        waiting = {client: client.ask(code) for client in self._clients}
        done = 0
        while waiting:
            ready = self._poller.poll(LIMIT * 1000)
            if not ready:
                raise NoAnswerError(f"{len(waiting)} of {len(self._clients)} kernels fell silent.")
            for socket, _ in ready:
                client, channel = self._sockets[socket]
                heard = heard_on(channel, socket)
                if ended(heard) and heard.parent == waiting.get(client):
                    done += 1
                    del waiting[client]
                    if time.perf_counter() < until:
                        waiting[client] = client.ask(code)
        return done


@contextmanager
def crowd(connections: Connections) -> Iterator[tuple[Crowd, list[Conversation]]]:
    """Clients that are ready, for the time of the block."""
    with zmq.Context() as context, ExitStack() as stack:
        clients = []
        for connection in connections:
            client = Conversation(connection, context)
            stack.callback(client.close)
            clients.append(client)
        for client in clients:
            client.wait_until_ready()
        yield Crowd(clients), clients


def _alone(count: int, contender: str, clients: Sequence[Conversation]) -> Iterator[Sample]:
    """Measure a cell of one kernel after the other, while all are there."""
    turns = iter(range(10**6))

    def one() -> None:
        clients[next(turns) % len(clients)].cell("pass")

    yield from by_turns(PART, f"round trip of a cell among {count} kernels", {contender: one}, ROUNDS)


def _together(count: int, contender: str, all_of_them: Crowd) -> Iterator[Sample]:
    """Measure all kernels at work at once: with empty cells, and with a megabyte of output each."""
    began = time.perf_counter()
    done = all_of_them.run("pass", BUSY)
    rate = done / (time.perf_counter() - began)
    yield Sample(Row(PART, f"cells of {count} kernels at once", contender), rate, Unit.RATE)
    printing = functools.partial(all_of_them.run, f"print('x' * {MEGABYTE})")
    yield from by_turns(PART, f"1 MB of output of {count} kernels at once", {contender: printing}, 3, of=count)


def _stage(peer: Loopback, kernels: Sequence[Kernel]) -> Iterator[Sample]:
    with ExitStack() as stack:
        lines = [kernels[first::LINES] for first in range(min(LINES, len(kernels)))]
        theirs = [found for line in lines for found in stack.enter_context(peer.openssh(*line))]
        ways: dict[str, Connections] = {
            DIRECT: [kernel.direct for kernel in kernels],
            OURS: [kernel.ours for kernel in kernels],
            SSH: theirs,
        }
        for contender, connections in ways.items():
            with crowd(connections) as (all_of_them, clients):
                yield from _alone(len(kernels), contender, clients)
                yield from _together(len(kernels), contender, all_of_them)


def measure() -> Iterator[Sample]:
    """Measure as many kernels as there are in each stage, over up to ten connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # For sshd and the forkserver, too, which take it over; in a VM the forkserver's is as high.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, hard), hard))
    try:
        with loopback() as peer:
            lines = [peer.line() for _ in range(LINES)]
            kernels: list[Kernel] = []
            for count in STAGES:
                kernels += [peer.kernel(lines[number % LINES]) for number in range(len(kernels), count)]
                yield from _stage(peer, kernels)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
