"""Real subprocesses: what they print comes back, and none is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from lima_kernels.lima import process

IGNORES_TERM = "trap '' TERM; echo $$ > pid; while :; do sleep 0.1; done"


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 0.3)


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


async def written_pid(file: str = "pid") -> int:
    """Wait until a script has written its process id."""
    for _ in range(500):
        text = Path(file).read_text() if Path(file).exists() else ""
        if text.endswith("\n"):
            return int(text)
        await asyncio.sleep(0.01)
    raise AssertionError(f"no {file} was written")


def exists(pid: int) -> bool:
    """Tell whether a process is there, be it only as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def ended(pid: int) -> bool:
    """Tell whether an orphan, which is for others to reap, ends within a second; it does not outlive the test."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return False


async def test_output_and_exit_code_come_back() -> None:
    done = await process.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert done == process.Completed(("sh", "-c", "echo out; echo err >&2; exit 7"), 7, "out\n", "err\n")


async def test_an_end_by_signal_is_a_negative_code() -> None:
    assert (await process.run(["sh", "-c", "kill -9 $$"])).returncode == -9


async def test_input_reaches_the_process() -> None:
    text = "ünï\n" * 100_000
    assert (await process.run(["cat"], stdin=text)).stdout == text


async def test_a_process_may_leave_its_input_unread() -> None:
    assert (await process.run(["true"], stdin="x" * 1_000_000)).returncode == 0


async def test_without_input_there_is_its_end() -> None:
    assert (await process.run(["cat"], timeout=5)).stdout == ""


async def test_environment_and_directory_are_the_given_ones(tmp_path: Path) -> None:
    done = await process.run(["/bin/sh", "-c", 'echo "$A"; pwd'], env={"A": "b"}, cwd=tmp_path)
    assert done.stdout.splitlines() == ["b", str(tmp_path.resolve())]


async def test_bytes_that_are_no_text_do_not_stop_it() -> None:
    assert (await process.run(["printf", r"a\377b"])).stdout == "a\N{REPLACEMENT CHARACTER}b"


async def test_a_missing_program_is_an_oserror() -> None:
    with pytest.raises(FileNotFoundError):
        await process.run(["/nonexistent/limactl"])
    with pytest.raises(FileNotFoundError):
        async with process.stream(["/nonexistent/limactl"]):
            pass


async def test_a_timeout_ends_the_process() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await process.run(["sh", "-c", "echo $$ > pid; exec sleep 60"], timeout=0.5)
    assert time.monotonic() - began < process.GRACE
    assert not exists(await written_pid())


@pytest.mark.usefixtures("short_grace")
async def test_a_timeout_ends_a_process_that_ignores_term() -> None:
    with pytest.raises(TimeoutError):
        await process.run(["sh", "-c", IGNORES_TERM], timeout=0.5)
    assert not exists(await written_pid())


async def test_a_timeout_ends_what_the_process_left_in_the_background() -> None:
    with pytest.raises(TimeoutError):
        await process.run(["sh", "-c", "sleep 60 & echo $! > pid"], timeout=0.5)
    assert await ended(await written_pid())


async def test_a_cancelled_run_leaves_no_process() -> None:
    task = asyncio.create_task(process.run(["sh", "-c", "echo $$ > pid; exec sleep 60"]))
    pid = await written_pid()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not exists(pid)


@pytest.mark.usefixtures("short_grace")
async def test_a_cancelled_run_leaves_no_process_that_ignores_term() -> None:
    task = asyncio.create_task(process.run(["sh", "-c", IGNORES_TERM]))
    pid = await written_pid()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not exists(pid)


async def test_a_cancelled_run_leaves_no_child_of_the_process() -> None:
    task = asyncio.create_task(process.run(["sh", "-c", "sleep 60 & echo $! > pid; wait"]))
    pid = await written_pid()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await ended(pid)


@pytest.mark.usefixtures("short_grace")
async def test_a_cancelled_run_leaves_no_child_that_ignores_term() -> None:
    script = "(trap '' TERM; exec sleep 60) >/dev/null 2>&1 & echo $! > pid; wait"
    task = asyncio.create_task(process.run(["sh", "-c", script]))
    pid = await written_pid()
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await ended(pid)


async def test_a_second_cancellation_does_not_wait_for_the_grace() -> None:
    task = asyncio.create_task(process.run(["sh", "-c", IGNORES_TERM]))
    pid = await written_pid()
    began = time.monotonic()
    task.cancel()
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < process.GRACE
    assert not exists(pid)


async def test_a_process_may_use_its_grace_to_tidy_up() -> None:
    script = "trap 'echo tidy > tidy; exit 0' TERM; echo $$ > pid; while :; do sleep 0.05; done"
    task = asyncio.create_task(process.run(["sh", "-c", script]))
    await written_pid()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Path("tidy").exists()


async def test_a_stream_merges_output_and_errors_line_by_line() -> None:
    script = r"echo one; echo two >&2; printf 'three\r\nfour'; exit 4"
    async with process.stream(["sh", "-c", script]) as running:
        lines = [line async for line in running.lines()]
        code = await running.wait()
    assert (lines, code) == (["one", "two", "three", "four"], 4)


async def test_a_stream_gives_lines_as_they_come() -> None:
    async with process.stream(["sh", "-c", "echo first; read never; sleep 60"]) as running:
        line = await asyncio.wait_for(anext(running.lines()), 5)
    assert line == "first"


@pytest.mark.parametrize("length", [70_000, 3_000_000])
async def test_long_lines_come_whole(length: int) -> None:
    script = f"head -c {length} /dev/zero | tr '\\0' x; echo; echo after"
    async with process.stream(["sh", "-c", script]) as running:
        assert [len(line) async for line in running.lines()] == [length, 5]
    assert len((await process.run(["sh", "-c", script])).stdout) == length + 7


async def test_leaving_a_stream_ends_its_process() -> None:
    async with process.stream(["sh", "-c", "echo $$ > pid; exec sleep 60"]):
        pid = await written_pid()
    assert not exists(pid)


@pytest.mark.usefixtures("short_grace")
async def test_an_error_in_the_block_ends_a_process_that_ignores_term() -> None:
    async def fail() -> None:
        async with process.stream(["sh", "-c", IGNORES_TERM]):
            await written_pid()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await fail()
    assert not exists(await written_pid())


async def test_a_cancelled_reader_of_a_stream_leaves_no_process() -> None:
    async def read() -> None:
        async with process.stream(["sh", "-c", "echo $$ > pid; exec sleep 60"]) as running:
            async for _ in running.lines():
                pass

    task = asyncio.create_task(read())
    pid = await written_pid()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not exists(pid)


async def test_a_cancellation_that_comes_as_it_ends_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever cancels waits for that, and would wait for ever."""
    communicate = asyncio.subprocess.Process.communicate

    async def cancelled_at_the_end(self: asyncio.subprocess.Process, stdin: bytes) -> tuple[bytes, bytes]:
        said = await communicate(self, stdin)
        running.cancel()
        return said

    monkeypatch.setattr(asyncio.subprocess.Process, "communicate", cancelled_at_the_end)
    running = asyncio.ensure_future(process.run(["true"], timeout=30))
    with pytest.raises(asyncio.CancelledError):
        await running
