"""What a guest's kernel may ask of its host, and what it gets that should not ask."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lima_kernels.control import CONVERSATIONS, Control
from lima_kernels.errors import InstanceError
from lima_kernels.guest import calls
from lima_kernels.lima.limactl import Limactl
from lima_kernels.magics import protocol
from lima_kernels.magics.arguments import VERBS
from lima_kernels.settings import Policy
from lima_kernels.verbs import vms
from lima_kernels.verbs.table import FUNCTIONS
from lima_kernels.verbs.vms import wish_to_start
from lima_kernels.vm import VM

from .conftest import Machine

KEY = b"the kernel's key"
OWN, OTHER = "lima-kernels", "theirs"


@pytest.fixture
def two_vms(machine: Machine) -> Machine:
    for name in (OWN, OTHER):
        directory = machine.lima_home / name
        directory.mkdir()
        (directory / "lima.yaml").write_text("images: []\n")
    return machine


@pytest.fixture
async def door(two_vms: Machine, tmp_path: Path) -> AsyncIterator[Path]:
    async for path in served(tmp_path, Policy.OWN_VM):
        yield path


async def served(tmp_path: Path, policy: Policy, key: bytes = KEY) -> AsyncIterator[Path]:
    vms: dict[str, VM] = {}
    control = Control(
        policy, OWN, "k1", key, lambda name: vms.setdefault(name, VM(name, Limactl(), lambda _step: None))
    )
    path = tmp_path / "control"
    server = await asyncio.start_unix_server(control.answer, path, limit=calls.LIMIT)
    async with server:
        yield path


async def ask(path: Path, data: bytes) -> dict[str, Any]:
    """Send these bytes, and return the last message; nothing from who hung up at once."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(data)
        said = await asyncio.wait_for(reader.read(), 30)
    except ConnectionResetError:
        return {}
    finally:
        writer.close()
    return json.loads(said.splitlines()[-1]) if said else {}


def request(verb: str, *arguments: str, **more: Any) -> bytes:
    asked = {"version": protocol.VERSION, "token": protocol.token(KEY), "verb": verb, "arguments": arguments}
    return protocol.line(asked | more)


def message(answer: dict[str, Any]) -> str:
    return answer["error"]["message"]


async def test_a_kernel_learns_how_its_vm_is(door: Path) -> None:
    answer = await ask(door, request("status"))
    assert [row[:2] for row in answer["table"]["rows"]] == [[OWN, "Stopped"]]


async def test_info_means_its_own_vm(door: Path) -> None:
    assert "table" in await ask(door, request("info"))
    assert "may ask for nothing of 'theirs'" in message(await ask(door, request("info", OTHER)))


@pytest.mark.parametrize("verb", ["status", "start", "stop", "restart", "kernels", "info", "logs", "ports", "env"])
async def test_other_vms_are_out_of_reach(
    door: Path, two_vms: Machine, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert "may ask for nothing of 'theirs'" in message(await ask(door, request(verb, OTHER)))
    assert f"was refused '{verb}' of 'theirs'" in caplog.text
    assert two_vms.calls("stop") == two_vms.calls("start") == []


@pytest.mark.parametrize(
    "name", ["../theirs", "./theirs", "theirs/", "", " ", "--force", "*", "\x00", "lima-kernels\n"]
)
async def test_tricks_with_names_lead_nowhere(door: Path, two_vms: Machine, name: str) -> None:
    answer = await ask(door, request("stop", name))
    # What names nothing is its own VM, and that is asked for with --yes.
    assert any(words in message(answer) for words in ("may ask for nothing of", "would end with it"))
    assert two_vms.calls("stop") == []


@pytest.mark.parametrize(
    "verb",
    sorted(
        set(VERBS)
        - {"status", "start", "stop", "restart", "kernels", "info", "logs", "ports", "forward", "unforward", "env"}
    ),
)
async def test_what_is_not_on_the_list_is_refused(door: Path, verb: str, caplog: pytest.LogCaptureFixture) -> None:
    answer = await ask(door, request(verb, OWN))
    assert "may not ask for" in message(answer) or "There is no verb" in message(answer)
    assert f"was refused {verb!r}" in caplog.text


async def test_a_kernel_that_would_end_itself_has_to_say_so(door: Path, two_vms: Machine) -> None:
    assert (
        message(await ask(door, request("stop")))
        == "This kernel lives in the VM 'lima-kernels', and would end with it."
    )
    assert two_vms.calls("stop") == []
    assert (await ask(door, request("stop", "--yes")))["note"] == "The VM lima-kernels is stopped already."


async def test_a_kernel_does_not_choose_a_port_of_its_host(door: Path, caplog: pytest.LogCaptureFixture) -> None:
    answer = await ask(door, request("forward", "80:8888"))
    assert message(answer) == "A kernel in a VM may not choose its host's port."
    assert "was refused port 8888" in caplog.text


@pytest.mark.parametrize(
    "token", ["", "x", protocol.token(b""), protocol.token(b"another key"), protocol.token(KEY).upper(), "é" * 64]
)
async def test_a_wrong_token_is_refused_and_logged(
    door: Path, two_vms: Machine, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert message(await ask(door, request("status", token=token))) == "The host does not know who asks."
    assert "sent a wrong token" in caplog.text
    assert two_vms.calls("list") == []


async def test_a_kernel_without_a_key_can_ask_for_nothing(two_vms: Machine, tmp_path: Path) -> None:
    async for path in served(tmp_path, Policy.ALL, key=b""):
        for token in ("", protocol.token(b"")):
            assert message(await ask(path, request("status", token=token))) == "The host does not know who asks."


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"{}\n",
        b"null\n",
        b"[1]\n",
        b'{"version": "1"}\n',
        b"\xff\xfe\n",
        b"[" * 60_000 + b"\n",
        request("status", arguments="status"),
        request("status", arguments=[1]),
        request("status", version=None),
    ],
)
async def test_what_is_no_request_is_refused(door: Path, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert message(await ask(door, data)) == "The host was sent what is no request."
    assert "sent what is no request" in caplog.text
    assert "table" in await ask(door, request("status"))


async def test_garbage_without_end_is_not_read_to_its_end(door: Path) -> None:
    _, writer = await asyncio.open_unix_connection(door)
    taken = 0
    with contextlib.suppress(OSError):
        for _ in range(160):
            writer.write(b"x" * 65536)
            await writer.drain()
            taken += 65536
    assert taken < 10_000_000
    writer.close()
    assert "table" in await ask(door, request("status"))


async def test_another_version_says_what_to_do(door: Path) -> None:
    answer = await ask(door, request("status", version=99))
    assert answer["error"]["hint"] == "Restart the kernel."


async def test_a_thousand_connections_are_refused_but_a_few(door: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = [await asyncio.open_unix_connection(door) for _ in range(1000)]
    refused = 0
    for reader, _ in opened[CONVERSATIONS:]:
        refused += await asyncio.wait_for(reader.read(), 30) == b""
    assert refused == 1000 - CONVERSATIONS
    for _, writer in opened:
        writer.close()
    assert "has too many conversations" in caplog.text
    # The few have hung up, and somebody else is answered.
    async with asyncio.timeout(30):
        while "table" not in await ask(door, request("status")):
            await asyncio.sleep(0.05)


async def test_who_hangs_up_wants_it_no_longer(door: Path, two_vms: Machine) -> None:
    two_vms.tell(hang=["list"])
    _, writer = await asyncio.open_unix_connection(door)
    writer.write(request("status"))
    await writer.drain()
    async with asyncio.timeout(30):
        while not two_vms.calls("list"):
            await asyncio.sleep(0.05)
        writer.close()
        two_vms.tell(hang=[])
        while "table" not in await ask(door, request("status")):
            await asyncio.sleep(0.05)


async def test_all_may_ask_for_other_vms(two_vms: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async for path in served(tmp_path, Policy.ALL):
        answer = await ask(path, request("list"))
        assert [row[0] for row in answer["table"]["rows"]] == [OWN, OTHER]
        assert "note" in await ask(path, request("stop", OTHER))
        assert "asks: stop theirs" in caplog.text


async def test_a_failure_is_the_hosts_line(door: Path, two_vms: Machine) -> None:
    two_vms.tell(fail={"list": "no such file"})
    assert "limactl list" in message(await ask(door, request("status")))


@pytest.mark.usefixtures("spec")
async def test_a_guest_that_starts_its_vm_again_sees_no_more_than_before(
    two_vms: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two_vms.notebooks)
    wishes = [await wish_to_start(Limactl(), OWN, here) for here in (Path.cwd(), None)]
    assert [wish.directory for wish in wishes] == [two_vms.notebooks, None]
    asked: list[Path | None] = []

    async def remember(_limactl: Limactl, _name: str, here: Path | None) -> None:
        asked.append(here)
        raise InstanceError("no further")

    monkeypatch.setattr(vms, "wish_to_start", remember)
    async for path in served(tmp_path, Policy.OWN_VM):
        assert message(await ask(path, request("start"))) == "no further"
    assert asked == [None]


def test_every_verb_is_somebodys() -> None:
    assert set(VERBS) - set(FUNCTIONS) == {"use", "shell", "push", "pull"}
