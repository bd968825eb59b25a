"""Scripts in the guest: as they were typed, apart from each other, and to the end of all that they started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from lima_kernels.errors import ConfigurationError, ConnectionFailed, GuestError
from lima_kernels.guest.background import State, background_status, end_background, start_in_background
from lima_kernels.guest.connection import Connection, Ended, open_connection
from lima_kernels.guest.execution import Script, execute
from lima_kernels.guest.host_keys import KeyStore
from tests.sshd import Sshd, connected

LIMIT = 30.0
OK = Ended(0, None)


@pytest.fixture
async def connection(sshd: Sshd) -> AsyncIterator[Connection]:
    async with connected(sshd) as made:
        yield made


class Heard:
    """What a script printed, and in which order where that is known."""

    def __init__(self) -> None:
        self.stdout = b""
        self.stderr = b""
        self.arrived = asyncio.Event()

    def take_stdout(self, data: bytes) -> None:
        self.stdout += data
        self.arrived.set()

    def take_stderr(self, data: bytes) -> None:
        self.stderr += data
        self.arrived.set()

    async def until(self, wanted: bytes) -> None:
        async with asyncio.timeout(LIMIT):
            while wanted not in self.stdout + self.stderr:
                self.arrived.clear()
                await self.arrived.wait()


async def heard(connection: Connection, text: str, **options: Any) -> tuple[Ended, Heard]:
    found = Heard()
    async with asyncio.timeout(LIMIT):
        ended = await execute(connection, Script(text, **options), found.take_stdout, found.take_stderr)
    return ended, found


async def failure(connection: Connection, text: str, **options: Any) -> str:
    with pytest.raises(GuestError) as caught:
        await heard(connection, text, **options)
    return str(caught.value)


def alive(pid: int) -> bool:
    # Who reaps the orphans of this machine is not ours to test.
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.01)


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()]


# A script and what it prints


async def test_output_is_apart_and_in_order(connection: Connection) -> None:
    ended, found = await heard(connection, "for n in 1 2 3; do echo out $n; echo err $n >&2; done; exit 7")
    assert ended == Ended(7, None)
    assert found.stdout == b"out 1\nout 2\nout 3\n"
    assert found.stderr == b"err 1\nerr 2\nerr 3\n"


async def test_output_comes_as_it_is_printed(connection: Connection, sshd: Sshd) -> None:
    found = Heard()
    go = sshd.home / "go"
    script = Script(f"echo first; until [ -e {go} ]; do sleep 0.01; done; echo second")
    task = asyncio.ensure_future(execute(connection, script, found.take_stdout, found.take_stderr))
    await found.until(b"first\n")
    assert found.stdout == b"first\n"
    go.touch()
    assert await task == OK
    assert found.stdout == b"first\nsecond\n"


@pytest.mark.parametrize("code", [0, 1, 126, 127, 255])
async def test_exit_codes(connection: Connection, code: int) -> None:
    assert (await heard(connection, f"exit {code}"))[0] == Ended(code, None)


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV"])
async def test_an_end_by_a_signal(connection: Connection, name: str) -> None:
    assert (await heard(connection, f"kill -{name} $$"))[0] == Ended(None, name)


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "it's",
        'say "hi"',
        "$HOME ${PATH} $(id) `id`",
        "back\\slash \\n \\\\ \\",
        "two\nlines\n\n\nand more",
        "  spaces\tand tabs  ",
        "grüße 日本語 🐍",
        "!history ~ * ? [a-z] {1,2}",
        "%s %% %d",
        "; rm -rf nothing & | < >",
        "'\"'\"'",
        "\x01\x07\x1b[31mred\x7f",
        "-n",
        "EOF\nlk-\n",
    ],
)
async def test_text_reaches_the_shell_as_typed(connection: Connection, text: str) -> None:
    quoted = text.replace("'", "'\\''")
    ended, found = await heard(connection, f"printf %s '{quoted}'; printf %s \"$TEXT\" >&2", env={"TEXT": text})
    assert (ended, found.stdout, found.stderr) == (OK, text.encode(), text.encode())


async def test_every_byte_reaches_the_shell(connection: Connection) -> None:
    data = bytes(byte for byte in range(1, 256) if byte != 0x27)
    text = b"printf %s '" + data + b"'"
    assert (await heard(connection, text.decode("utf-8", "surrogateescape")))[1].stdout == data


async def test_a_script_longer_than_a_pipe_holds(connection: Connection) -> None:
    text = "".join(f"echo line {number} of the script\n" for number in range(20_000))
    ended, found = await heard(connection, text)
    assert ended == OK
    assert found.stdout.count(b"\n") == 20_000


@pytest.mark.parametrize("text", ["echo a\0b", "echo \ud800"])
async def test_text_that_no_shell_can_take(connection: Connection, text: str) -> None:
    with pytest.raises(ConfigurationError):
        await heard(connection, text)


async def test_a_name_that_no_variable_can_have(connection: Connection) -> None:
    with pytest.raises(ConfigurationError, match=r"'A B' cannot be an environment variable's name."):
        await heard(connection, "true", env={"A B": "x"})


async def test_another_shell_gets_the_script_as_a_file(connection: Connection) -> None:
    ended, found = await heard(connection, "import sys\nprint('é', sys.flags.isolated)", shell=("python3", "-I"))
    assert (ended, found.stdout) == (OK, "é 1\n".encode())


async def test_stdin_is_closed(connection: Connection) -> None:
    ended, found = await heard(connection, "cat; read line || echo nothing")
    assert (ended, found.stdout) == (OK, b"nothing\n")


async def test_the_directory_of_the_script(connection: Connection, sshd: Sshd) -> None:
    odd = sshd.home / "it's\n$HOME"
    odd.mkdir()
    assert (await heard(connection, "pwd", cwd=str(odd)))[1].stdout == f"{odd}\n".encode()
    assert (await heard(connection, "pwd", cwd="~/it's\n$HOME"))[1].stdout == f"{odd}\n".encode()
    assert (await heard(connection, "pwd", cwd="~"))[1].stdout == f"{sshd.home}\n".encode()


async def test_what_is_missing_is_said_in_one_line(connection: Connection) -> None:
    assert await failure(connection, "pwd", cwd="/no/such") == (
        "The script was not started: the guest has no directory '/no/such' that its user may enter."
    )
    assert await failure(connection, "pwd", shell=("nosuchshell", "-e")) == (
        "The script was not started: the guest has no program 'nosuchshell'."
    )


async def test_what_the_login_shell_prints_is_not_taken_for_our_word(connection: Connection, sshd: Sshd) -> None:
    (sshd.home / ".bashrc").write_text("echo hello from bashrc >&2\n")
    ended, found = await heard(connection, "echo out; echo err >&2")
    assert (ended, found.stdout, found.stderr) == (OK, b"out\n", b"hello from bashrc\nerr\n")


async def test_a_login_shell_that_prints_without_end(connection: Connection, sshd: Sshd) -> None:
    (sshd.home / ".bashrc").write_text("yes >&2\n")
    assert "prints without end" in await failure(connection, "true")


async def test_a_login_shell_that_ends_at_once(connection: Connection, sshd: Sshd) -> None:
    (sshd.home / ".bashrc").write_text("exit 3\n")
    assert await failure(connection, "true") == "The script was not started: the guest's login shell ended with 3."


async def test_another_user_by_sudo(connection: Connection, sshd: Sshd) -> None:
    # What sudo is asked for; that it grants it is the guest's affair.
    sudo = sshd.bin / "sudo"
    sudo.write_text('#!/bin/sh\n[ "$1 $2 $4" = "-n -u --" ] || exit 9\nexport SUDO_USER="$3"\nshift 4\nexec "$@"\n')
    sudo.chmod(0o755)
    assert (await heard(connection, "echo $SUDO_USER", user="some one"))[1].stdout == b"some one\n"
    sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2; exit 1\n")
    assert await failure(connection, "true", user="root") == (
        "The script was not started: the guest's login shell ended with 1. "
        "May the guest's user run commands as 'root' by sudo?"
    )


async def test_nothing_of_script_or_variables_is_in_an_argument(connection: Connection) -> None:
    text = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; : script-secret"
    _, found = await heard(connection, text, env={"TOKEN": "variable-secret"})
    assert b"/dev/fd/3" in found.stdout
    assert b"script-secret" not in found.stdout
    assert b"variable-secret" not in found.stdout


async def test_much_output_is_neither_kept_nor_in_the_way(connection: Connection) -> None:
    process = psutil.Process()
    count = 0
    peak = before = process.memory_info().rss

    def take(data: bytes) -> None:
        nonlocal count, peak
        count += len(data)
        peak = max(peak, process.memory_info().rss)

    longest = 0.0

    async def heartbeat() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - began)

    beating = asyncio.ensure_future(heartbeat())
    ended = await execute(connection, Script("head -c 104857600 /dev/zero"), take, take)
    beating.cancel()
    assert (ended, count) == (OK, 104857600)
    assert peak - before < 50 * 1024 * 1024
    # The loop was never kept for the time that a tenth of the output takes.
    assert longest < 1.0


async def test_who_does_not_take_the_output_lets_the_guest_wait(connection: Connection, sshd: Sshd) -> None:
    counter = sshd.home / "count"
    script = Script(f"for n in $(seq 200); do head -c 100000 /dev/zero; echo $n > {counter}; done")
    taken = 0
    go = asyncio.Event()

    async def take(data: bytes) -> None:
        nonlocal taken
        await go.wait()
        taken += len(data)

    task = asyncio.ensure_future(execute(connection, script, take, take))
    await until(counter.exists)
    # As much as waits on the way; then the script itself waits.
    said = ""
    async with asyncio.timeout(LIMIT):
        while said != (said := counter.read_text()) or not said:
            await asyncio.sleep(0.3)
    assert int(said) < 100
    assert not task.done()
    go.set()
    assert await task == OK
    assert taken == 20_000_000


async def test_whose_sink_fails_is_told_so(connection: Connection, sshd: Sshd) -> None:
    file = sshd.home / "pid"

    def take(_data: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await execute(connection, Script(f"echo $$ > {file}; echo x; sleep 100"), take, take)
    assert not alive(*pids(file))


# The end of a script

_FAMILY = """
echo $$ > {file}
(sleep 100 & echo $! >> {file}; wait) &
echo $! >> {file}
nohup sleep 100 > {file}.out 2>&1 &
echo $! >> {file}
echo ready
wait
"""


async def test_an_interrupt_ends_the_group_with_grandchildren(connection: Connection, sshd: Sshd) -> None:
    found, file = Heard(), sshd.home / "pids"
    script = Script(_FAMILY.format(file=file))
    task = asyncio.ensure_future(execute(connection, script, found.take_stdout, found.take_stderr))
    await found.until(b"ready\n")
    await until(lambda: len(pids(file)) == 4)
    family = pids(file)
    assert all(map(alive, family))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [pid for pid in family if alive(pid)] == []
    # The connection is as good as before.
    assert (await heard(connection, "echo on"))[1].stdout == b"on\n"


async def test_a_script_may_clean_up_when_it_is_interrupted(connection: Connection) -> None:
    found = Heard()
    script = Script("trap 'echo cleaned; exit 1' INT; echo ready; while :; do sleep 0.05; done")
    task = asyncio.ensure_future(execute(connection, script, found.take_stdout, found.take_stderr))
    await found.until(b"ready\n")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert found.stdout == b"ready\ncleaned\n"


async def test_who_ignores_all_signals_is_killed(connection: Connection, sshd: Sshd) -> None:
    found, file = Heard(), sshd.home / "pid"
    script = Script(f"trap '' INT TERM HUP; echo $$ > {file}; echo ready; while :; do sleep 1; done")
    task = asyncio.ensure_future(execute(connection, script, found.take_stdout, found.take_stderr))
    await found.until(b"ready\n")
    task.cancel()
    # Whoever is impatient does not shorten it.
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(*pids(file))


async def test_a_cancellation_at_any_moment_leaves_nothing(connection: Connection, sshd: Sshd) -> None:
    file = sshd.home / "pid"
    for turns in range(40):
        task = asyncio.ensure_future(
            execute(connection, Script(f"echo $$ >> {file}; sleep 100"), lambda _data: None, lambda _data: None)
        )
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    begun = pids(file) if file.exists() else []
    await until(lambda: not any(map(alive, begun)))
    assert (await heard(connection, "echo on"))[1].stdout == b"on\n"


async def test_a_timeout_ends_the_script(connection: Connection, sshd: Sshd) -> None:
    file = sshd.home / "pid"
    said = await failure(connection, f"echo $$ > {file}; sleep 100", timeout=0.5)
    assert said == "The script did not end within 0.5 s and was ended. Give it more with --timeout."
    assert not alive(*pids(file))


async def test_what_a_script_leaves_is_hung_up_on(connection: Connection, sshd: Sshd) -> None:
    file = sshd.home / "pids"
    ended, _ = await heard(connection, f"sleep 100 & echo $! > {file}")
    assert ended == OK
    await until(lambda: not any(map(alive, pids(file))))


async def test_what_ignores_the_hangup_goes_on_and_is_not_waited_for(connection: Connection, sshd: Sshd) -> None:
    file = sshd.home / "pids"
    # It keeps the script's output open.
    ended, found = await heard(connection, f"nohup sleep 100 & echo $! > {file}; echo done")
    assert (ended, found.stdout) == (OK, b"done\n")
    [pid] = pids(file)
    assert alive(pid)
    psutil.Process(pid).kill()


async def test_a_lost_connection_is_said_and_hangs_up(connection: Connection, sshd: Sshd) -> None:
    found, file = Heard(), sshd.home / "pids"
    script = Script(f"echo $$ > {file}; sleep 100 & echo $! >> {file}; echo ready; wait")
    task = asyncio.ensure_future(execute(connection, script, found.take_stdout, found.take_stderr))
    await found.until(b"ready\n")
    sshd.drop_connections()
    with pytest.raises(ConnectionFailed, match="lost while the script ran: its result is unknown"):
        async with asyncio.timeout(LIMIT):
            await task
    await until(lambda: not any(map(alive, pids(file))))


class FarAway:
    """A way to an sshd on which each byte takes its time, in seconds, in each direction."""

    DELAY = 0.1

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, there_writer]
        await asyncio.gather(self._carry(reader, there_writer), self._carry(there_reader, writer))

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(65536):
            loop.call_later(self.DELAY, writer.write, data)


async def test_a_script_takes_two_round_trips_more_than_a_command_at_most(sshd: Sshd) -> None:
    way = FarAway(sshd.port)
    server = await asyncio.start_server(way, "127.0.0.1", 0)
    endpoint = sshd.endpoint._replace(port=server.sockets[0].getsockname()[1])
    connection = await open_connection(endpoint, KeyStore(sshd.root / "far.json"))
    began = time.monotonic()
    await connection.run("true", timeout=LIMIT)
    plain = time.monotonic() - began
    began = time.monotonic()
    assert (await heard(connection, "true"))[0] == OK
    # The way is so long that nothing else counts, and the limit is relative to it.
    assert time.monotonic() - began - plain < 2 * 2 * FarAway.DELAY
    server.close()
    await way.close()
    await connection.close()


async def test_two_scripts_at_once(connection: Connection) -> None:
    first, second = await asyncio.gather(
        heard(connection, "sleep 0.2; echo first; exit 1"), heard(connection, "echo second; exit 2")
    )
    assert (first[0].code, first[1].stdout, second[0].code, second[1].stdout) == (1, b"first\n", 2, b"second\n")


# In the background


async def test_a_script_in_the_background_outlives_the_connection(sshd: Sshd) -> None:
    go = sshd.home / "go"
    text = f"echo begun; echo err >&2; until [ -e {go} ]; do sleep 0.01; done; echo $VALUE; exit 5"
    async with connected(sshd) as connection:
        script = await start_in_background(connection, Script(text, env={"VALUE": "it's"}))
        assert alive(script.pid)
        assert os.getpgid(script.pid) == script.pid
        assert await background_status(connection, script) == (State.RUNNING, None)
    sshd.drop_connections()
    async with connected(sshd) as connection:
        assert await background_status(connection, script) == (State.RUNNING, None)
        go.touch()
        await until(lambda: not alive(script.pid))
        assert await background_status(connection, script) == (State.ENDED, 5)
    assert Path(script.log).read_text() == "begun\nerr\nit's\n"
    assert Path(script.log).stat().st_mode & 0o777 == 0o600


async def test_a_script_in_the_background_is_ended_with_its_children(connection: Connection, sshd: Sshd) -> None:
    file = sshd.home / "pids"
    script = await start_in_background(
        connection, Script(f"trap '' TERM; sleep 100 & echo $$ $! > {file}; while :; do sleep 1; done")
    )
    await until(lambda: file.exists() and len(pids(file)) == 2)
    await end_background(connection, script)
    assert not alive(script.pid)
    await until(lambda: not any(map(alive, pids(file))))
    assert await background_status(connection, script) == (State.LOST, None)
    # Nothing is left to end, and another process of that number would not be touched.
    await end_background(connection, script)


async def test_a_pid_that_another_process_has_got_is_not_touched(connection: Connection, sshd: Sshd) -> None:
    script = await start_in_background(connection, Script("sleep 100"))
    file = Path(script.log.removesuffix("log") + "pid")
    pid, start = file.read_text().split()
    file.write_text(f"{pid} {int(start) - 1}\n")
    assert await background_status(connection, script) == (State.LOST, None)
    await end_background(connection, script)
    assert alive(script.pid)
    file.write_text(f"{pid} {start}\n")
    await end_background(connection, script)
    assert not alive(script.pid)


async def test_a_script_that_cannot_start_in_the_background(connection: Connection, sshd: Sshd) -> None:
    with pytest.raises(GuestError, match="the guest has no directory '/no/such'"):
        await start_in_background(connection, Script("true", cwd="/no/such"))
    (sshd.home / ".lima-kernels").touch()
    with pytest.raises(GuestError, match="its log cannot be written in the guest"):
        await start_in_background(connection, Script("true"))


async def test_many_scripts_in_the_background_leave_room_for_more(connection: Connection) -> None:
    # sshd gives one connection ten sessions.
    scripts = [await start_in_background(connection, Script("sleep 100")) for _ in range(12)]
    assert (await heard(connection, "echo on"))[1].stdout == b"on\n"
    for script in scripts:
        os.killpg(script.pid, signal.SIGKILL)
