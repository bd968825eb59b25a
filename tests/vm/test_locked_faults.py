"""What goes wrong with a locked environment on a real VM: it is left as it was, and made whole by the next sync."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jupyter_client import KernelManager

from lima_kernels import paths
from lima_kernels.reproduce.locking import REQUIREMENTS
from tests.client import Notebook

from .conftest import INSTANCE, Figures, Start, guest_shell
from .test_other_kernels import called, command

# Each sync takes half a minute in an emulated guest.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
HOME = "/opt/lima-kernels/environments/faulty"
OLD, NEW = "0.8.10", "0.9.0"
SIXTY = 60


def version() -> str:
    """What the environment's present build has."""
    code = "import tabulate; print(tabulate.__version__)"
    return guest_shell(f'{HOME}/current/bin/python -c "{code}"')


def sync(file: Path) -> str:
    return command("env", "sync", str(file), "--instance", INSTANCE)


def syncing(file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lima_kernels", "env", "sync", str(file), "--instance", INSTANCE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_while_it_builds(file: Path) -> None:
    """Begin a sync, and end its host's side once it builds, which it does aside."""
    builds = guest_shell(f"ls {HOME}/builds").split()
    process = syncing(file)
    guest_shell(f"until [ $(ls {HOME}/builds | wc -l) -gt {len(builds)} ]; do sleep 0.1; done", timeout=120)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)


@pytest.fixture(scope="module")
def locks(vm: str, directories: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """An environment file, and what its lock is for each of two versions; the guest has the older one."""
    directory = directories / "faulty"
    directory.mkdir()
    file = directory / "lima-env.yaml"
    before = Path.cwd()
    os.chdir(directory)
    command("start", INSTANCE)
    found = {}
    for wanted in (NEW, OLD):
        file.write_text(f"name: faulty\npython: [tabulate=={wanted}]\n")
        command("env", "lock", str(file), "--instance", INSTANCE)
        found[wanted] = file.with_suffix(".lock").read_text()
    sync(file)
    command("install", "--name", "faulty", "--environment", str(file), "--instance", INSTANCE, "--user")
    yield file, found
    os.chdir(before)


@pytest.fixture
def file(locks: tuple[Path, dict[str, str]]) -> Path:
    """The environment file; its lock wants the newer version, and the guest has the older one."""
    file, found = locks
    for wanted in (OLD, NEW):
        file.write_text(f"name: faulty\npython: [tabulate=={wanted}]\n")
        file.with_suffix(".lock").write_text(found[wanted])
        if wanted == OLD and version() != OLD:
            sync(file)
    return file


@pytest.fixture
def kernel(file: Path) -> Iterator[Notebook]:
    manager = KernelManager(kernel_name="faulty")
    manager.start_kernel(cwd=str(file.parent))
    notebook = Notebook(manager)
    yield notebook
    notebook.client.stop_channels()
    manager.shutdown_kernel(now=True)


@contextmanager
def full_disk() -> Iterator[None]:
    guest_shell("sudo fallocate -l $(( $(df --output=avail -B1 /opt | tail -1) - 20000000 )) /opt/filled")
    try:
        yield
    finally:
        guest_shell("sudo rm /opt/filled")


@contextmanager
def no_network() -> Iterator[None]:
    """The guest reaches nobody; who reached it already goes on."""
    rule = "OUTPUT ! -o lo -p tcp --syn -j REJECT"
    guest_shell(f"sudo iptables -I {rule}")
    try:
        yield
    finally:
        guest_shell(f"sudo iptables -D {rule}")


def test_two_syncs_at_once_do_it_once(file: Path) -> None:
    both = [syncing(file), syncing(file)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("is already" in out for out, _ in said) == [False, True], said
    assert version() == NEW


def test_a_killed_sync_changes_nothing_and_the_next_one_does_it(file: Path) -> None:
    killed_while_it_builds(file)
    # Its program in the guest would finish what it has begun: that one is torn off as well.
    guest_shell("pkill -9 -f 'forkserver[.]layers'; pkill -9 -x uv; true")
    guest_shell("while pgrep -x uv >/dev/null; do sleep 0.1; done")
    assert version() == OLD
    assert "is now" in sync(file)
    assert version() == NEW
    assert len(guest_shell(f"ls {HOME}/builds").split()) == 1


def test_without_its_host_a_sync_is_finished_all_the_same(file: Path) -> None:
    killed_while_it_builds(file)
    # Whoever comes next waits for it, and finds it done.
    assert "The VM" in sync(file)
    assert version() == NEW


def test_a_full_disk_changes_nothing(file: Path) -> None:
    with full_disk():
        refused = called("env", "sync", str(file), "--instance", INSTANCE)
        assert refused.returncode == 1
        assert "disk" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert version() == OLD
    sync(file)
    assert version() == NEW


def test_without_a_network_what_is_cached_is_used(file: Path) -> None:
    sync(file)
    guest_shell(f"{HOME}/current/bin/python -m pip uninstall --quiet --yes tabulate")
    with no_network():
        assert "is now" in sync(file)
        assert version() == NEW
        file.write_text("name: faulty\npython: [tabulate==0.8.9]\n")
        refused = called("env", "lock", str(file), "--instance", INSTANCE)
        assert refused.returncode == 1
        assert "needs the network" in refused.stderr
        assert version() == NEW


def test_a_lock_takes_as_long_as_its_resolver(file: Path, figures: Figures) -> None:
    project = file.parent / "sixty"
    project.mkdir()
    requirements = ["pandas", "matplotlib", "scikit-learn", "jupyterlab", "requests", "sqlalchemy"]
    (project / "lima-env.yaml").write_text(f"name: sixty\npython: {requirements}\n")
    asked = ("env", "lock", str(project / "lima-env.yaml"), "--instance", INSTANCE)
    # What the index says is known to both from here on.
    command(*asked)
    packages = tomllib.loads((project / "lima-env.lock").read_text())["pylock"]["packages"]
    assert len(packages) >= SIXTY
    names = "\n".join((*REQUIREMENTS, *requirements))
    compiled = f"printf '{names}' | UV_CACHE_DIR={HOME}/../.cache UV_SYSTEM_CERTS=1 {paths.GUEST_UV} pip compile - "
    compiled += "--universal --format pylock.toml --generate-hashes --python /usr/bin/python3 --quiet >/dev/null"
    with figures.timed("uv pip compile, 60 packages"):
        guest_shell(compiled, timeout=300)
    with figures.timed("env lock --upgrade, 60 packages"):
        command(*asked, "--upgrade")
    seconds = figures.seconds
    assert seconds["env lock --upgrade, 60 packages"] < 2 * seconds["uv pip compile, 60 packages"]


def test_an_environment_in_use_is_removed_by_force_only(file: Path, kernel: Notebook, start: Start) -> None:
    assert kernel.run("import tabulate; print(tabulate.__version__)") == NEW
    plain = start()
    refused = called("env", "remove", "faulty")
    assert refused.returncode == 1
    assert "run in the environment faulty" in refused.stderr
    assert kernel.run("print(1)") == "1"
    command("env", "remove", "faulty", "--force")
    assert guest_shell(f"ls -d {HOME} || true") == ""
    assert plain.run("print(6 * 7)") == "42"
    # What is removed can be had again.
    assert "is now" in sync(file)
    assert version() == NEW
