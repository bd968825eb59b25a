"""The state machine of a resumable stream: two ends over a carrier that is cut anywhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from lima_kernels.guest.forkserver.resumable import (
    ACKNOWLEDGE_EVERY,
    FRAME_LIMIT,
    HEADER,
    WINDOW,
    ProtocolError,
    Resumable,
)

DATA, RECEIVED, END = 0, 1, 2


def frame(kind: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return HEADER.pack(kind, len(payload) if length is None else length) + payload


def given(state: Resumable, data: bytes) -> bytes:
    return b"".join(state.give(data))


def count(number: int) -> bytes:
    return frame(RECEIVED, number.to_bytes(8, "big"))


class Side:
    """One end with what it is to send, what it has got, and what is on its way to the other end."""

    def __init__(self, source: bytes) -> None:
        self.state = Resumable()
        self.source = source
        self.given = 0
        self.got = bytearray()
        self.finished = False
        self.on_the_way = bytearray()

    def is_done(self, other: Side) -> bool:
        return self.finished and self.state.ended and self.got == other.source


class Pair:
    """Two ends and the carrier between them, driven by chance."""

    def __init__(self, chance: random.Random, sizes: tuple[int, int]) -> None:
        self.chance = chance
        self.sides = (Side(chance.randbytes(sizes[0])), Side(chance.randbytes(sizes[1])))
        self.is_carried = True
        self.cuts = 0
        self.lost = 0

    def send(self, side: Side, data: bytes) -> None:
        if self.is_carried:
            side.on_the_way += data

    def step(self) -> None:
        side, other = self.chance.sample(self.sides, 2)
        event = self.chance.random()
        if event < 0.45:
            self.produce(side)
        elif event < 0.93:
            self.deliver(side, other)
        elif event < 0.97:
            self.cut()
        elif not self.is_carried:
            self.join()

    def produce(self, side: Side) -> None:
        if side.state.is_full or side.finished:
            return
        if side.given == len(side.source):
            side.finished = True
            self.send(side, side.state.finish())
            return
        data = side.source[side.given : side.given + self.chance.choice((1, 7, 100, 5000, 70_000, FRAME_LIMIT))]
        side.given += len(data)
        self.send(side, given(side.state, data))

    def deliver(self, side: Side, other: Side) -> None:
        """Let some of what is on its way arrive, in whatever pieces."""
        size = self.chance.choice((1, 3, 4, 6, 1000, 65_536, 1 << 21))
        data = bytes(side.on_the_way[:size])
        del side.on_the_way[:size]
        for payload in other.state.take(data):
            other.got += payload
        self.send(other, other.state.acknowledge())

    def cut(self) -> None:
        self.cuts += self.is_carried
        self.is_carried = False
        for side in self.sides:
            self.lost += len(side.on_the_way)
            side.on_the_way.clear()

    def join(self) -> None:
        self.is_carried = True
        one, two = self.sides
        counts = (one.state.received, two.state.received)
        for side, peer_received in ((one, counts[1]), (two, counts[0])):
            for data in side.state.resume(peer_received):
                self.send(side, data)

    def run(self) -> None:
        one, two = self.sides
        for _ in range(200_000):
            if one.is_done(two) and two.is_done(one):
                return
            self.step()
        raise AssertionError("it did not come to an end")


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_cut_comes_out_once_and_in_order(seed: int) -> None:
    chance = random.Random(seed)
    pair = Pair(chance, (chance.choice((0, 1, 300_000, 3_000_000)), chance.choice((0, 5, 900_000))))
    pair.run()
    one, two = pair.sides
    assert bytes(two.got) == one.source
    assert bytes(one.got) == two.source
    assert (one.state.received, two.state.received) == (len(two.source), len(one.source))


def test_the_chance_above_does_cut_and_lose() -> None:
    pairs = []
    for seed in range(20):
        pairs.append(Pair(random.Random(seed), (1_000_000, 100_000)))
        pairs[-1].run()
    assert sum(pair.cuts for pair in pairs) > 30
    assert sum(pair.lost for pair in pairs) > 1_000_000


def test_what_was_acknowledged_is_not_kept() -> None:
    one, two = Resumable(), Resumable()
    sent = b"".join(given(one, bytes([number]) * 1000) for number in range(256))
    assert b"".join(two.take(sent)) == b"".join(bytes([number]) * 1000 for number in range(256))
    assert two.acknowledge() == b""
    list(two.take(given(one, b"x" * 10_000)))
    told = two.acknowledge()
    assert told == count(266_000)
    assert list(one.take(told)) == []
    assert list(one.resume(266_000)) == []


def test_a_count_within_a_frame_sends_the_rest_of_that_frame_again() -> None:
    one = Resumable()
    given(one, b"abcdef")
    given(one, b"ghi")
    assert list(one.resume(4)) == [frame(DATA, b"ef"), frame(DATA, b"ghi")]
    # What the peer has is forgotten: it cannot have less the next time.
    assert list(one.resume(6)) == [frame(DATA, b"ghi")]
    with pytest.raises(ProtocolError):
        list(one.resume(4))


def test_an_end_is_told_again_over_each_carrier() -> None:
    one, two = Resumable(), Resumable()
    lost = given(one, b"last words") + one.finish()
    assert not two.ended
    assert len(lost) > 0
    again = b"".join(one.resume(two.received))
    assert b"".join(two.take(again)) == b"last words"
    assert two.ended
    assert list(one.resume(two.received)) == [frame(END)]


@pytest.mark.parametrize(("missing", "came"), [(3, b"wholebro"), (6, b"whole"), (8, b"whole")])
def test_of_a_broken_frame_what_came_is_not_sent_again(missing: int, came: bytes) -> None:
    one, two = Resumable(), Resumable()
    sent = given(one, b"whole") + given(one, b"broken")
    assert b"".join(two.take(sent[:-missing])) == came
    assert two.received == len(came)
    again = b"".join(one.resume(two.received))
    assert list(two.resume(0)) == []
    assert came + b"".join(two.take(again)) == b"wholebroken"


def test_payload_is_handed_on_before_its_frame_is_whole() -> None:
    one, two = Resumable(), Resumable()
    sent = given(one, b"a" * 1000)
    assert [bytes(payload) for payload in two.take(sent[:105])] == [b"a" * 100]
    assert [bytes(payload) for payload in two.take(sent[105:] + sent[:3])] == [b"a" * 900]


def test_an_empty_payload_is_no_harm() -> None:
    one, two = Resumable(), Resumable()
    assert b"".join(two.take(given(one, b"") + given(one, b"a"))) == b"a"
    assert b"".join(list(one.resume(0))) in (frame(DATA, b"a"), frame(DATA) + frame(DATA, b"a"))


# The window


def test_a_source_must_wait_at_the_window_and_goes_on_by_acknowledgements() -> None:
    one, two = Resumable(), Resumable()
    chunk = bytes(65_536)
    sent = [given(one, chunk) for _ in range(WINDOW // len(chunk) - 1)]
    assert not one.is_full
    sent.append(given(one, chunk))
    assert one.is_full
    told = b""
    for data in sent:
        list(two.take(data))
        told = two.acknowledge()
        if told:
            break
    list(one.take(told))
    assert not one.is_full


def test_few_acknowledgements_are_sent() -> None:
    one, two = Resumable(), Resumable()
    told = 0
    for _ in range(4096):
        list(two.take(given(one, bytes(4096))))
        told += len(two.acknowledge()) > 0
    assert told == 4096 * 4096 // ACKNOWLEDGE_EVERY


def test_a_resumption_tells_the_count_and_starts_the_acknowledgements_anew() -> None:
    one, two = Resumable(), Resumable()
    list(two.take(given(one, bytes(ACKNOWLEDGE_EVERY))))
    # The peer gets the count when the new carrier begins: it need not come a second time.
    list(two.resume(0))
    assert two.acknowledge() == b""
    list(one.resume(two.received))
    list(two.take(given(one, bytes(ACKNOWLEDGE_EVERY))))
    assert two.acknowledge() == count(2 * ACKNOWLEDGE_EVERY)


# Hostile input


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(frame(3), id="unknown kind"),
        pytest.param(frame(255, b"abc"), id="another unknown kind"),
        pytest.param(frame(DATA, b"", FRAME_LIMIT + 1), id="too long"),
        pytest.param(frame(END, b"", 0xFFFFFFFF), id="much too long"),
        pytest.param(frame(RECEIVED, b"1234567"), id="count too short"),
        pytest.param(frame(RECEIVED), id="count missing"),
        pytest.param(frame(RECEIVED, bytes(9)), id="count too long"),
        pytest.param(count(11), id="more than was sent"),
        pytest.param(count(2**64 - 1), id="much more than was sent"),
        pytest.param(count(4) + count(3), id="less than before"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2p1\r\n", id="another protocol"),
    ],
)
@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
def test_what_is_no_frame_is_refused(hostile: bytes, piece: int) -> None:
    state = Resumable()
    given(state, b"0123456789")

    def feed() -> Iterator[memoryview]:
        for start in range(0, len(hostile), piece):
            yield from state.take(hostile[start : start + piece])

    with pytest.raises(ProtocolError):
        list(feed())


@pytest.mark.parametrize("peer_received", [11, 2**64, -1])
def test_an_impossible_count_at_a_resumption_is_refused(peer_received: int) -> None:
    state = Resumable()
    given(state, b"0123456789")
    with pytest.raises(ProtocolError):
        list(state.resume(peer_received))


def test_a_length_is_refused_before_anything_of_it_is_kept() -> None:
    state = Resumable()
    with pytest.raises(ProtocolError):
        list(state.take(frame(DATA, b"", FRAME_LIMIT + 1) + bytes(100)))


def memory_of(feed: Callable[[Resumable], None]) -> int:
    state = Resumable()
    feed(state)
    return len(state._head) + sum(len(kept) for kept in state._kept)


def test_a_frame_that_never_ends_takes_no_memory() -> None:
    def feed(state: Resumable) -> None:
        list(state.take(frame(DATA, b"", FRAME_LIMIT)))
        for _ in range(FRAME_LIMIT // 1024 - 1):
            assert len(list(state.take(bytes(1024)))) == 1

    assert memory_of(feed) == 0


def test_a_million_frames_leave_nothing_behind() -> None:
    def feed(state: Resumable) -> None:
        block = (frame(DATA, b"x") + frame(DATA) + count(0) + frame(END)) * 2500
        for _ in range(25):
            for _ in state.take(block):
                pass

    assert memory_of(feed) == 0
