"""Leases: locks of the operating system, held by real processes that live and die."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lima_kernels import leases, paths
from lima_kernels.errors import ConfigurationError, HostError
from lima_kernels.guest.kernels import KernelFacts
from tests.child import child, in_child

from .conftest import Machine


def directory(machine: Machine, instance: str = "vm") -> Path:
    return machine.lima_home / "_lima-kernels" / instance / "kernels"


def files(machine: Machine) -> list[str]:
    """What there is of each lease; beside it lies the lock that a look takes."""
    return sorted(set(os.listdir(directory(machine))) - {".guard"})


def taken(
    kernel: str, *, session: str = "", spec: str = "", sockets: Path | None = None, instance: str = "vm"
) -> leases.Lease | None:
    return leases.acquire(instance, kernel, KernelFacts(session=session, spec=spec), sockets)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def hold(_machine: Machine, kernel: str, session: str = "") -> None:
    """Take a lease, say so, and keep it until told to give it up."""
    lease = taken(kernel, session=session, spec="lima")
    print("held" if lease else "refused", flush=True)
    if sys.stdin.readline().strip() == "release" and lease:
        lease.release()
        print("released", flush=True)
        sys.stdin.readline()


def test_a_lease_is_one_process_alone(machine: Machine) -> None:
    with child(hold, machine, "k") as one, child(hold, machine, "k") as two:
        said = {one.line(), two.line()}
        assert said == {"held", "refused"}
        assert taken("k") is None
        other = taken("another")
        assert other is not None
        elsewhere = taken("k", instance="vm2")
        assert elsewhere is not None
        for lease in (other, elsewhere):
            lease.release()


def test_two_in_one_process_exclude_each_other_too(machine: Machine) -> None:
    lease = taken("k")
    assert lease is not None
    assert taken("k") is None
    lease.release()
    again = taken("k")
    assert again is not None
    again.release()


def test_a_killed_process_has_no_lease(machine: Machine) -> None:
    with child(hold, machine, "k") as holder:
        assert holder.line() == "held"
        holder.kill()
    lease = taken("k", session="b.ipynb")
    assert lease is not None
    record = leases.held("vm")["k"]
    assert (record.pid, record.session) == (os.getpid(), "b.ipynb")
    lease.release()


def test_a_child_of_the_holder_does_not_keep_the_lease(machine: Machine) -> None:
    def body() -> int:
        with child(with_child, machine) as holder:
            return int(holder.line())

    survivor = body()
    try:
        lease = taken("k")
        assert lease is not None
        lease.release()
    finally:
        os.kill(survivor, 9)


def with_child(_machine: Machine) -> None:
    assert taken("k") is not None
    # As a terminal of the Jupyter server does, it outlives the server that is killed.
    survivor = subprocess.Popen(
        ["sleep", "300"], close_fds=False, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    print(survivor.pid, flush=True)
    sys.stdin.readline()


def test_a_lease_that_is_given_up_can_be_taken(machine: Machine) -> None:
    with child(hold, machine, "k") as holder:
        assert holder.line() == "held"
        holder.say("release")
        assert holder.line() == "released"
        lease = taken("k")
        assert lease is not None
        assert set(leases.held("vm")) == {"k"}
        lease.release()
        assert leases.held("vm") == {}


def test_a_release_may_come_twice_and_takes_nothing_from_another(machine: Machine) -> None:
    first = taken("k")
    assert first is not None
    first.release()
    second = taken("k")
    assert second is not None
    first.release()
    assert set(leases.held("vm")) == {"k"}
    assert taken("k") is None
    second.release()


def test_the_end_of_a_kernel_leaves_no_file(machine: Machine) -> None:
    lease = taken("k")
    assert lease is not None
    assert files(machine) == ["k.json", "k.lock"]
    lease.release()
    assert files(machine) == []


def test_what_dead_processes_left_is_removed(machine: Machine) -> None:
    ours = taken("ours")
    assert ours is not None
    with child(hold, machine, "dead") as dead, child(hold, machine, "alive", "c.ipynb") as alive:
        assert (dead.line(), alive.line()) == ("held", "held")
        dead.kill()
        assert len(files(machine)) == 6
        held = leases.held("vm")
        assert {name: (record.pid, record.session) for name, record in held.items()} == {
            "ours": (os.getpid(), ""),
            "alive": (alive.pid, "c.ipynb"),
        }
        assert files(machine) == ["alive.json", "alive.lock", "ours.json", "ours.lock"]
        # To look takes nothing from anybody.
        assert leases.held("vm") == held
        assert taken("alive") is None
    ours.release()
    assert leases.held("vm") == {}
    assert files(machine) == []


def look(_machine: Machine) -> None:
    """Take leases while others look at all of them."""
    for _ in range(300):
        lease = taken("k")
        if lease is not None:
            assert taken("k") is None, "two have it"
            lease.release()
        leases.held("vm")


def test_many_that_take_look_and_give_up_at_once(machine: Machine) -> None:
    with child(look, machine) as one, child(look, machine) as two, child(look, machine) as three:
        for each in (one, two, three):
            each.finish()
    assert leases.held("vm") == {}
    lease = taken("k")
    assert lease is not None
    lease.release()


def count(machine: Machine, turns: str) -> None:
    """Count in a file, as long as nobody else does: a lost count is a lease that two had."""
    file = machine.root / "count"
    done = 0
    while done < int(turns):
        lease = taken("k")
        if lease is not None:
            before = int(file.read_text())
            file.write_text(str(before + 1))
            lease.release()
            done += 1


def test_no_two_have_a_lease_at_once(machine: Machine) -> None:
    (machine.root / "count").write_text("0")
    with child(count, machine, "200") as one, child(count, machine, "200") as two:
        one.finish()
        two.finish()
    assert (machine.root / "count").read_text() == "400"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}', "\0\0", '{"version": 1, "kernel": 5}'])
def test_a_corrupt_record_is_no_user_but_its_lock_counts(machine: Machine, text: str) -> None:
    lease = taken("k")
    assert lease is not None
    (directory(machine) / "k.json").write_text(text)
    assert leases.held("vm") == {}
    assert leases.users_of("vm") == []
    # The process lives: the kernel is nobody else's.
    assert taken("k") is None
    lease.release()
    assert taken("k") is not None


def hold_sockets(_machine: Machine, kernel: str, sockets: str) -> None:
    assert taken(kernel, sockets=Path(sockets))
    print("held", flush=True)
    sys.stdin.readline()


def test_the_sockets_of_the_dead_are_removed_and_nothing_else(machine: Machine) -> None:
    own, alive = paths.socket_directory("one"), paths.socket_directory("two")
    foreign = machine.home / "notebooks"
    foreign.mkdir()
    lease = taken("alive", sockets=alive)
    assert lease is not None
    for kernel, directory in (("k1", own), ("k2", foreign), ("k3", own.parent)):
        with child(hold_sockets, machine, kernel, str(directory)) as holder:
            assert holder.line() == "held"
    assert set(leases.held("vm")) == {"alive"}
    assert not own.exists()
    assert alive.exists()
    assert foreign.exists()
    lease.release()


def test_a_lock_of_a_dead_process_without_record(machine: Machine) -> None:
    with child(hold, machine, "k") as holder:
        holder.line()
        (directory(machine) / "k.json").unlink()
        assert leases.held("vm") == {}
        assert taken("k") is None
    assert leases.held("vm") == {}
    assert files(machine) == []


def test_users_in_words(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/jupyter-lab", "--port=1"])
    several = [
        taken("a1", session="/nb/a.ipynb", spec="lima"),
        taken("a2", spec="lima"),
        taken("a3"),
    ]
    pid = os.getpid()
    assert leases.users_of("vm") == [
        f"/nb/a.ipynb (jupyter-lab, process {pid})",
        f"lima (jupyter-lab, process {pid})",
        f"a3 (jupyter-lab, process {pid})",
    ]
    for lease in several:
        assert lease is not None
        lease.release()
    assert leases.users_of("vm") == []
    assert leases.users_of("nobodys") == []


def test_nobody_else_can_look(machine: Machine) -> None:
    before = os.umask(0)
    try:
        lease = taken("k")
        assert lease is not None
    finally:
        os.umask(before)
    where = directory(machine)
    for parent in (where, where.parent, where.parent.parent):
        assert mode(parent) == 0o700, parent
    assert {file.name: mode(file) for file in where.iterdir()} == dict.fromkeys((".guard", "k.json", "k.lock"), 0o600)
    assert json.loads((where / "k.json").read_text())["pid"] == os.getpid()
    lease.release()


def test_a_lease_that_cannot_be_written_is_not_held(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise HostError("full")

    with monkeypatch.context() as patch:
        patch.setattr(leases.records, "write", full)
        with pytest.raises(HostError):
            taken("k")
    assert in_child(once, machine) == "True"
    assert files(machine) == ["k.json", "k.lock"]
    assert leases.held("vm") == {}


def once(_machine: Machine) -> None:
    print(taken("k") is not None)


def look_for_ever(_machine: Machine) -> None:
    with leases._guarded("vm"):
        print("looking", flush=True)
        sys.stdin.readline()


def test_a_look_that_does_not_end_is_an_error_and_not_a_hang(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_GUARD_TIMEOUT", 0.1)
    with child(look_for_ever, machine) as looker:
        assert looker.line() == "looking"
        with pytest.raises(HostError, match="looked at by another process"):
            taken("k")
        looker.kill()
    assert leases.held("vm") == {}


def test_a_name_that_is_a_path_is_refused(machine: Machine) -> None:
    with pytest.raises(ConfigurationError):
        taken("k", instance="../vm")
    assert paths.leases_directory("vm").is_dir()
