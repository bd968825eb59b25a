"""One real VM for the whole run, made anew: with Jupyter's and Lima's own directories, apart from the user's."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import KernelManager

from lima_kernels import runtime
from lima_kernels.kernelspec import make_request, write
from lima_kernels.lima.limactl import Limactl
from lima_kernels.progress import Phase, Step
from tests.client import Notebook
from tests.own_directories import own_directories

INSTANCE = "lk-test"
Start = Callable[..., Notebook]


class Figures:
    """What was measured; written to build/vm-tests.json for whoever reads the run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    made = Figures()
    yield made
    build = Path(__file__).parents[2] / "build"
    build.mkdir(exist_ok=True)
    (build / "vm-tests.json").write_text(json.dumps(made.seconds, indent=2) + "\n")


@pytest.fixture(scope="session")
def steps() -> Iterator[list[Step]]:
    """Every step of every start in this run, in their order."""
    seen: list[Step] = []
    with runtime.runtime().listening(seen.append):
        yield seen


@pytest.fixture(scope="session", autouse=True)
def directories() -> Iterator[Path]:
    """The run's own root."""
    with own_directories() as root:
        yield root


@pytest.fixture(scope="session")
def notebooks(directories: Path) -> Path:
    directory = directories / "note books é"
    directory.mkdir()
    return directory


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


@pytest.fixture(scope="session")
def vm(directories: Path) -> Iterator[str]:
    """The name of the run's instance; it is made by whichever test needs it first."""
    spec = make_request("lima", "Linux (Lima)", environment=None, instance=INSTANCE, attach=False)
    # No server of this run puts it to sleep for the next test.
    spec.config["on_idle"] = "nothing"
    write(spec, user=True, prefix=None)
    yield INSTANCE
    if runtime._runtime is not None:
        runtime._runtime.close()
        runtime._runtime = None
    for instance in run(Limactl().list()):
        run(Limactl().delete(instance.name))


@pytest.fixture
def start(vm: str, notebooks: Path) -> Iterator[Callable[..., Notebook]]:
    """Start kernels; they are shut down when the test ends."""
    started: list[Notebook] = []

    def start_one(cwd: Path | None = None, **config: object) -> Notebook:
        manager = KernelManager(kernel_name="lima")
        assert manager.kernel_spec is not None
        manager.kernel_spec.metadata["kernel_provisioner"]["config"].update(config)
        manager.start_kernel(cwd=str(cwd or notebooks))
        started.append(Notebook(manager))
        return started[-1]

    yield start_one
    for notebook in started:
        notebook.client.stop_channels()
        if notebook.manager.has_kernel:
            notebook.manager.shutdown_kernel(now=True)


def until(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.2)


def entered(steps: list[Step], since: int, phase: Phase) -> bool:
    return any(step.phase is phase for step in steps[since:])


def guest_shell(command: str, timeout: float = 60) -> str:
    """Run a command in the guest by Lima's own way in, not by ours."""
    argv = ["limactl", "--tty=false", "shell", "--workdir=/", INSTANCE, "sh", "-c", command]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=True)
    return done.stdout.strip()


def kernels_in_guest() -> list[str]:
    # One that stands by has no record yet.
    return guest_shell("ls -d ~/.lima-kernels/*/k/*/kernel.json 2>/dev/null || :").split()
