"""snapshot, disk, prune and template, on a limactl that behaves and fails as the real one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from lima_kernels import added_mounts, paths, records
from lima_kernels.errors import ConfigurationError, InstanceError, LimactlError, LimaKernelsError
from lima_kernels.lima.models import Snapshot, decode_snapshots
from lima_kernels.verbs import storage

from .conftest import Machine
from .verbs import CONFIG, Asking, make, used

MOUNTED = CONFIG + "mounts:\n- location: /a\n"
WHEN = "2026-11-21 21:57:23"


@pytest_asyncio.fixture
async def asking(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Asking]:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    made = Asking(machine)
    yield made
    await made.close()


@contextlib.contextmanager
def refused(kind: type[LimaKernelsError], text: str) -> Iterator[None]:
    """Expect one error, in these words, hint included."""
    with pytest.raises(kind) as caught:
        yield
    assert str(caught.value) == text


async def keep(asking: Asking, action: str, tag: str | None = None, name: str | None = None) -> Any:
    return await asking(storage.snapshot, action=action, tag=tag, name=name)


async def on_disk(asking: Asking, action: str, disk: str | None = None, size: str | None = None, **more: bool) -> Any:
    return await asking(storage.disk, action=action, disk=disk, size=size, **{"force": False, **more})


# snapshot


async def test_a_snapshot_from_its_making_to_its_end(asking: Asking) -> None:
    await make(asking, "one", MOUNTED)
    assert await keep(asking, "list") == []
    assert await keep(asking, "create", "before") == "The snapshot before keeps the disk of the VM one."
    assert list(await keep(asking, "list")) == [{"tag": "before", "made": WHEN, "memory": ""}]
    assert await keep(asking, "apply", "before") == f"The VM one is as it was at {WHEN}."
    assert await keep(asking, "delete", "before") == "The snapshot before of the VM one is deleted."
    assert await keep(asking, "list") == []


async def test_a_snapshot_of_a_running_vm_has_its_memory(asking: Asking) -> None:
    await make(asking, "one", running=True)
    assert await keep(asking, "create", "a") == "The snapshot a keeps the disk and memory of the VM one."
    assert list(await keep(asking, "list")) == [{"tag": "a", "made": WHEN, "memory": "353 MiB"}]
    await keep(asking, "apply", "a")
    assert asking.said == ["one: making the snapshot a", "one: going back to the snapshot a"]


@pytest.mark.parametrize("kind", ["9p", "virtiofs"])
async def test_a_running_vm_that_shows_directories_has_none(asking: Asking, kind: str) -> None:
    """QEMU fails then, and leaves the VM hung."""
    await make(asking, "one", f"{MOUNTED}mountType: {kind}\n", running=True)
    for action in ("create", "apply"):
        if action == "apply":
            (asking.machine.lima_home / "one" / "running").unlink()
            await keep(asking, "create", "a")
            (asking.machine.lima_home / "one" / "running").touch()
        with refused(
            InstanceError,
            f"The VM 'one' runs and shows directories of this host by {kind}: QEMU has no snapshots then. "
            "Stop it, which ends its kernels: %lima stop one",
        ):
            await keep(asking, action, "a")
    # What touches no device can be done.
    await keep(asking, "delete", "a")


async def test_sshfs_is_in_nobodys_way(asking: Asking) -> None:
    await make(asking, "one", f"{MOUNTED}mountType: reverse-sshfs\n", running=True)
    await keep(asking, "create", "a")


async def test_a_running_vm_that_shows_an_added_directory_has_none(asking: Asking, tmp_path: Path) -> None:
    await make(asking, "one", running=True)
    await keep(asking, "create", "a")
    directory = tmp_path / "data é"
    record = paths.mounts_directory("one") / f"{added_mounts.name_of(directory)}.json"
    paths.private_directory(record.parent)
    records.write(record, added_mounts.ServedDirectory(directory=str(directory), read_only=False))
    for action in ("create", "apply"):
        with refused(
            InstanceError,
            f"The VM 'one' runs and shows {directory}, which was added: no snapshot can keep that. "
            f"%lima unmount '{directory}' --instance one",
        ):
            await keep(asking, action, "a")
    (asking.machine.lima_home / "one" / "running").unlink()
    await keep(asking, "create", "b")


async def test_the_mount_type_that_lima_takes_counts(asking: Asking) -> None:
    await make(asking, "one", f"{MOUNTED}mountType: ''\n", running=True)
    with pytest.raises(InstanceError, match=r"by (9p|virtiofs): QEMU has no snapshots then"):
        await keep(asking, "create", "a")


@pytest.mark.parametrize("running", [False, True])
async def test_a_tag_that_is_taken(asking: Asking, running: bool) -> None:
    """QEMU would replace it while the VM runs, and have two of that name while it does not."""
    await make(asking, "one", running=running)
    await keep(asking, "create", "a")
    with refused(
        InstanceError,
        "The VM 'one' has a snapshot 'a' already. Choose another tag, or: %lima snapshot delete a --instance one",
    ):
        await keep(asking, "create", "a")
    assert len(await keep(asking, "list")) == 1


@pytest.mark.parametrize("action", ["apply", "delete"])
async def test_an_unknown_tag(asking: Asking, action: str) -> None:
    await make(asking, "one")
    await keep(asking, "create", "before")
    with refused(InstanceError, "The VM 'one' has no snapshot 'befor'. Did you mean 'before'?"):
        await keep(asking, action, "befor")
    with refused(InstanceError, "The VM 'one' has no snapshot 'x'. See them: %lima snapshot list --instance one"):
        await keep(asking, action, "x")


@pytest.mark.parametrize("tag", ["1", "-a", "a b", "a\nquit", "a;b", "ä"])
async def test_what_is_no_tag(asking: Asking, tag: str) -> None:
    await make(asking, "one")
    with pytest.raises(ConfigurationError, match="cannot be a snapshot's tag"):
        await keep(asking, "create", tag)
    assert [call for call in asking.machine.calls("snapshot") if call[1] == "create"] == []


@pytest.mark.parametrize("action", ["create", "apply", "delete"])
async def test_a_tag_is_needed(asking: Asking, action: str) -> None:
    await make(asking, "one")
    with refused(
        ConfigurationError,
        f"A tag is needed that names the snapshot to {action}. %lima snapshot {action} TAG --instance one",
    ):
        await keep(asking, action)


@pytest.mark.parametrize("action", ["list", "create", "apply", "delete"])
async def test_only_qemu_has_snapshots(asking: Asking, action: str) -> None:
    await make(asking, "one")
    asking.machine.tell(vm_type="vz")
    with refused(
        InstanceError,
        "The VM 'one' is of the type vz: Lima has snapshots of QEMU's VMs only. "
        "A copy of the stopped VM keeps its state as well: %lima clone one NEW",
    ):
        await keep(asking, action, "a")
    assert asking.machine.calls("snapshot") == []


@pytest.mark.parametrize("action", ["list", "create", "apply", "delete"])
async def test_snapshots_of_an_unknown_vm(asking: Asking, action: str) -> None:
    await make(asking, "one")
    with refused(InstanceError, "There is no Lima instance 'onee'. Did you mean 'one'?"):
        await keep(asking, action, "a", name="onee")


async def test_a_broken_vm_has_no_snapshots(asking: Asking) -> None:
    """QEMU may have the disk open, though Lima cannot ask it."""
    await make(asking, "one")
    asking.machine.tell(status="Broken", errors=["no host agent"])
    with refused(
        InstanceError, "The VM 'one' is Broken: no host agent. To end what is left of it: %lima stop one --force"
    ):
        await keep(asking, "create", "a")


async def test_a_vm_without_a_disk_has_none(asking: Asking) -> None:
    await make(asking, "one")
    file = asking.machine.lima_home / "one" / "disk"
    file.write_bytes(bytes(512))
    with pytest.raises(InstanceError, match="is no qcow2 image, and can hold no snapshots"):
        await keep(asking, "create", "a")
    file.unlink()
    assert await keep(asking, "list") == []
    with refused(InstanceError, "The VM 'one' has no disk yet. Start it first: %lima start one"):
        await keep(asking, "create", "a")


async def test_going_back_ends_no_kernel_unasked(asking: Asking) -> None:
    await make(asking, "one", running=True)
    await keep(asking, "create", "a")
    with used("one"), pytest.raises(InstanceError) as caught:
        await keep(asking, "apply", "a")
    assert caught.value.message == "The VM 'one' is in use."
    assert "%lima stop one --force" in caught.value.hint


async def test_a_snapshot_without_memory_needs_a_stopped_vm(asking: Asking) -> None:
    await make(asking, "one")
    await keep(asking, "create", "a")
    (asking.machine.lima_home / "one" / "running").touch()
    with refused(
        InstanceError,
        "The snapshot 'a' was made while the VM 'one' was stopped, and holds no memory. Stop it first: %lima stop one",
    ):
        await keep(asking, "apply", "a")


async def test_what_the_monitor_answers_is_told(asking: Asking) -> None:
    await make(asking, "one", running=True)
    asking.machine.tell(monitor="Error: No block device can accept snapshots")
    with pytest.raises(LimactlError, match="failed: Error: No block device can accept snapshots"):
        await keep(asking, "create", "a")


async def test_a_snapshot_that_fails_leaves_none(asking: Asking) -> None:
    await make(asking, "one")
    asking.machine.tell(fail={"kept": "exit status 1"})
    with pytest.raises(LimactlError, match="exit status 1"):
        await keep(asking, "create", "a")
    assert await keep(asking, "list") == []


async def test_a_snapshot_that_is_given_up_leaves_none(asking: Asking) -> None:
    await make(asking, "one")
    asking.machine.tell(hang=["kept"])
    file = asking.machine.lima_home / "one" / "disk"
    await asking.given_up(
        storage.snapshot, lambda: b"half" in file.read_bytes(), action="create", tag="half", name="one"
    )
    asking.machine.tell(hang=[])
    assert await keep(asking, "list") == []


def test_qemus_table_of_snapshots() -> None:
    offline = (
        "Snapshot list:\n"
        "ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT\n"
        "1         snap1                 0 B 2026-11-21 21:47:49 00:00:00.000          0\n"
        "2         a b               1.5 GiB 2026-11-21 21:47:49 00:00:00.000          0\n"
    )
    assert decode_snapshots(offline) == (
        Snapshot("snap1", "0 B", "2026-11-21 21:47:49"),
        Snapshot("a b", "1.5 GiB", "2026-11-21 21:47:49"),
    )
    running = (
        "ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT\n"
        "--        warm              353 MiB 2026-11-21 21:47:49 00:01:02.003\n"
        "List of partial (non-loadable) snapshots on 'disk':\n"
    )
    assert decode_snapshots(running) == (Snapshot("warm", "353 MiB", "2026-11-21 21:47:49"),)
    assert decode_snapshots("") == ()


# disk


async def test_a_disk_from_its_making_to_its_end(asking: Asking) -> None:
    note = await on_disk(asking, "create", "data", "10")
    assert note.startswith("The disk data is made, with 10 GiB.")
    directory = asking.machine.lima_home / "_disks" / "data"
    assert list(await on_disk(asking, "list")) == [
        {"name": "data", "size": "10 GiB", "format": "qcow2", "in_use_by": "", "directory": str(directory)}
    ]
    assert await on_disk(asking, "resize", "data", "20GiB") == "The disk data has 20 GiB."
    assert await on_disk(asking, "unlock", "data") == "The disk data is not locked."
    assert await on_disk(asking, "delete", "data") == "The disk data is deleted."
    assert await on_disk(asking, "list") == []


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (("create", None, "1GiB"), "A name is needed for the disk to create. %lima disk create NAME"),
        (("delete",), "A name is needed for the disk to delete. %lima disk delete NAME"),
        (("create", "data"), "A size is needed for the disk 'data'. %lima disk create data --size 10GiB"),
        (("resize", "data"), "A size is needed for the disk 'data'. %lima disk resize data --size 10GiB"),
        (("create", "data", "much"), "expected a size such as 4GiB, got 'much' at --size."),
    ],
)
async def test_what_cannot_be_understood_of_a_disk(asking: Asking, asked: tuple[str, ...], text: str) -> None:
    with refused(ConfigurationError, text):
        await on_disk(asking, *asked)


async def test_a_disks_name(asking: Asking) -> None:
    with pytest.raises(ConfigurationError, match=r"'\.\./x' cannot be a Lima disk's name"):
        await on_disk(asking, "create", "../x", "1")
    await on_disk(asking, "create", "data", "1")
    with refused(InstanceError, "The name 'data' is taken by another disk. See them: %lima disk list"):
        await on_disk(asking, "create", "data", "1")


@pytest.mark.parametrize("action", ["delete", "resize", "unlock"])
async def test_an_unknown_disk(asking: Asking, action: str) -> None:
    await on_disk(asking, "create", "data", "1")
    with refused(InstanceError, "Lima has no disk 'date'. Did you mean 'data'?"):
        await on_disk(asking, action, "date", "2")


def lock(asking: Asking, instance: str) -> Path:
    link = asking.machine.lima_home / "_disks" / "data" / "in_use_by"
    link.symlink_to(asking.machine.lima_home / instance)
    return link


async def test_a_disk_in_use_by_a_running_vm(asking: Asking) -> None:
    await make(asking, "one", CONFIG + "additionalDisks: [data]\n", running=True)
    await on_disk(asking, "create", "data", "1")
    lock(asking, "one")
    for action, force in (("delete", False), ("delete", True), ("resize", False), ("unlock", False)):
        with refused(
            InstanceError,
            "The disk 'data' is in use by the VM 'one', which runs. Stop it, which ends its kernels: %lima stop one",
        ):
            await on_disk(asking, action, "data", "2", force=force)
    (row,) = await on_disk(asking, "list")
    assert (row["in_use_by"], row["size"]) == ("one", "1 GiB")


async def test_a_disk_of_a_stopped_vm(asking: Asking) -> None:
    await make(asking, "one", CONFIG + "additionalDisks: [data]\n")
    await on_disk(asking, "create", "data", "1")
    with refused(
        InstanceError,
        "The disk 'data' belongs to the VM 'one'. "
        "To delete it all the same; that VM does not start then: %lima disk delete data --force",
    ):
        await on_disk(asking, "delete", "data")
    await on_disk(asking, "delete", "data", force=True)
    assert await on_disk(asking, "list") == []


async def test_a_disk_that_a_vm_left_locked(asking: Asking) -> None:
    await make(asking, "one")
    await on_disk(asking, "create", "data", "1")
    link = lock(asking, "one")
    with pytest.raises(InstanceError, match="belongs to the VM 'one'"):
        await on_disk(asking, "delete", "data")
    assert await on_disk(asking, "unlock", "data") == "The disk data is free; the VM one had left it locked."
    assert not link.is_symlink()


async def test_limas_disks_cannot_shrink(asking: Asking) -> None:
    await on_disk(asking, "create", "data", "2")
    with refused(InstanceError, "The disk 'data' has 2 GiB and cannot shrink to 1 GiB. A disk can only grow."):
        await on_disk(asking, "resize", "data", "1")


async def test_a_disk_that_limactl_does_not_make(asking: Asking) -> None:
    asking.machine.tell(fail={"datadisk": "no space left on device"})
    with pytest.raises(LimactlError, match="no space left on device"):
        await on_disk(asking, "create", "data", "1")
    assert list((asking.machine.lima_home / "_disks").iterdir()) == []


async def test_a_disk_that_is_given_up_leaves_nothing(asking: Asking) -> None:
    asking.machine.tell(hang=["datadisk"])
    directory = asking.machine.lima_home / "_disks" / "data"
    await asking.given_up(storage.disk, directory.exists, action="create", disk="data", size="1", force=False)
    assert not directory.exists()


async def test_somebody_elses_disk_that_was_faster_is_left(asking: Asking) -> None:
    asking.machine.tell(delay={"disk": 1.0})
    asked = asyncio.ensure_future(on_disk(asking, "create", "data", "1"))
    while not asking.machine.calls("disk"):
        await asyncio.sleep(0.02)
    directory = asking.machine.lima_home / "_disks" / "data"
    directory.mkdir(parents=True)
    (directory / "datadisk").write_text("7")
    with pytest.raises(LimactlError, match="already exists"):
        await asked
    assert (directory / "datadisk").read_text() == "7"


# prune, template


def download(asking: Asking, name: str) -> Path:
    directory = asking.machine.home / ".cache" / "lima" / "download" / "by-url-sha256" / name
    directory.mkdir(parents=True)
    (directory / "data").write_bytes(bytes(range(256)) * 4096)
    return directory


async def test_downloads_are_removed(asking: Asking) -> None:
    cache = asking.machine.home / ".cache" / "lima"
    assert await asking(storage.prune, keep_referred=False) == f"0 bytes are freed in {cache}."
    download(asking, "a")
    assert await asking(storage.prune, keep_referred=False) == f"1 MiB are freed in {cache}."
    assert not cache.exists()


async def test_downloads_that_are_needed_are_kept(asking: Asking) -> None:
    kept, gone = download(asking, "a"), download(asking, "b")
    asking.machine.tell(referred="a")
    note = await asking(storage.prune, keep_referred=True)
    assert note.startswith("1 MiB are freed in ")
    assert note.endswith("; 1 MiB are kept.")
    assert (kept.exists(), gone.exists()) == (True, False)


async def test_a_prune_that_fails(asking: Asking) -> None:
    asking.machine.tell(fail={"prune": "cannot safely prune while instance `one` is being used"})
    with pytest.raises(LimactlError, match="cannot safely prune"):
        await asking(storage.prune, keep_referred=True)


async def test_limas_templates(asking: Asking) -> None:
    table = await asking(storage.template, action="list")
    assert [row["name"] for row in table] == ["debian-12", "debian-13", "ubuntu-24.04"]
