"""From an environment to a lima.yaml: pinned images, ports, files, certificates, and what of it a VM is marked with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from lima_kernels import paths
from lima_kernels.environment import certificates
from lima_kernels.environment.instance import Plan, plan
from lima_kernels.environment.spec import parse
from lima_kernels.errors import ImageError
from lima_kernels.lima.limactl import Limactl
from lima_kernels.lima.template import OwnerMark, Source

from .conftest import Machine

DISK = hashlib.sha256(b"QFI\xfb").hexdigest()
OTHER = "cd" * 32


async def planned(text: str, made: OwnerMark | None = None) -> Plan:
    return await plan(Limactl(), parse(text, source="env.yaml", base=Path("/")), [], made)


async def config(text: str) -> dict[str, Any]:
    document = yaml.safe_load((await planned(text)).config)
    assert isinstance(document, dict)
    return document


def record(image_files: Path, **values: Any) -> None:
    """Change the manifest of the image of this host."""
    file = image_files / "image.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.usefixtures("machine")
async def test_an_image_that_its_pin_names_is_taken(image_files: Path) -> None:
    found = await planned(f"image: debian-12@sha256:{DISK}")
    assert (found.mark.source, found.mark.image_sha256) == (Source.LOCAL, DISK)
    assert yaml.safe_load(found.config)["images"][0]["location"] == str(image_files / "disk.qcow2")


@pytest.mark.usefixtures("machine")
async def test_an_image_that_its_pin_does_not_name_is_refused(image_files: Path) -> None:
    with pytest.raises(ImageError) as caught:
        await planned(f"image: debian-12@sha256:{OTHER}")
    assert str(caught.value) == (
        f"The disk {image_files}/disk.qcow2 is not the one that the environment names: expected SHA-256 {OTHER}, got "
        f"{DISK}. Get that image, or change the digest in the environment file."
    )


@pytest.mark.usefixtures("machine")
async def test_what_the_manifest_says_of_a_disk_is_believed(image_files: Path) -> None:
    record(image_files, version=2, sha256={"disk.qcow2": OTHER})
    assert (await planned(f"image: debian-12@sha256:{OTHER}")).mark.image_sha256 == OTHER
    assert (await planned("")).mark.image_sha256 == OTHER


async def test_a_pinned_image_that_is_not_here_is_no_template(machine: Machine) -> None:
    with pytest.raises(ImageError, match=f"The image nowhere@sha256:{OTHER} is not on this host."):
        await planned(f"image: nowhere@sha256:{OTHER}")
    assert machine.calls("template") == []


async def test_image_files_are_looked_at_when_a_vm_is_made_from_them(machine: Machine) -> None:
    disk = machine.root / "disk"
    disk.write_bytes(b"QFI\xfb")
    text = f"image: {{location: {disk}, digest: 'sha256:%s'}}"
    found = await planned(text % DISK)
    assert found.mark.image_sha256 == DISK
    with pytest.raises(ImageError, match="is not the one that the environment names"):
        await planned(text % OTHER)
    # A VM has a disk of its own, whatever has become of the file.
    disk.write_bytes(b"QFI\xfbmore")
    assert (await planned(text % DISK, found.mark)).mark.image_sha256 == DISK


@pytest.mark.usefixtures("machine", "image_files")
async def test_a_vm_stays_marked_with_what_it_was_made_from() -> None:
    first = (await planned("")).mark
    made = msgspec.structs.replace(first, image_sha256=OTHER)
    assert (await planned("cpus: 2", made)).mark.image_sha256 == OTHER


@pytest.mark.usefixtures("machine")
async def test_an_image_of_another_cpu_is_refused(image_files: Path) -> None:
    record(image_files, arch="aarch64")
    with pytest.raises(ImageError, match=r"The image 'debian-12' is for aarch64, and the environment wants x86_64\."):
        await planned("arch: x86_64")
    assert (await config("arch: aarch64"))["arch"] == "aarch64"


@pytest.mark.usefixtures("machine", "image_files")
async def test_ports_are_reached_at_loopback() -> None:
    rules = (await config("ports: [8080, {guest: 80, host: 18080}]"))["portForwards"]
    assert rules[:2] == [
        {"guestPort": 8080, "hostPort": 8080, "hostIP": "127.0.0.1", "proto": "tcp"},
        {"guestPort": 80, "hostPort": 18080, "hostIP": "127.0.0.1", "proto": "tcp"},
    ]
    assert all(rule["ignore"] for rule in rules[2:])


@pytest.mark.usefixtures("machine", "image_files")
async def test_files_are_written_as_they_are() -> None:
    text = "files: [{path: /etc/a, content: '{{.User}}'}, {path: '{{.Home}}/b', content: '', mode: '0600'}]"
    entries = {entry["path"]: entry for entry in (await config(text))["provision"] if entry["mode"] == "data"}
    assert entries["/etc/a"] == {
        "mode": "data",
        "path": "/etc/a",
        "content": '{{"{{"}}.User}}',
        "permissions": "0644",
        "owner": "root:root",
    }
    assert (entries["{{.Home}}/b"]["owner"], entries["{{.Home}}/b"]["permissions"]) == ("{{.User}}", "0600")
    assert paths.GUEST_INSTANCE_FILE in entries


@pytest.mark.usefixtures("machine", "image_files")
async def test_a_script_that_is_to_run_once_does_not_run_at_every_boot() -> None:
    scripts = (await config("provision: [{script: x, mode: user, when: once}]"))["provision"]
    assert scripts[-1]["mode"] == "user"
    assert "runs until it has succeeded once" in scripts[-1]["script"]


@pytest.mark.usefixtures("image_files")
async def test_whom_the_guest_trusts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
    (machine.root / "added").mkdir()
    (machine.root / "added" / "host.crt").write_text(pem)
    (machine.root / "own.pem").write_text(pem.replace("AAAA", "BBBB"))
    disk = machine.root / "disk"
    disk.write_bytes(b"QFI\xfb")
    monkeypatch.setattr(certificates, "_ADDED", (machine.root / "added",))
    files = f"image: {{location: {disk}}}\n"
    assert pem in (await config(files))["caCerts"]["certs"]
    assert "caCerts" not in await config(f"{files}caCertificates: none")
    own = f"caCertificates: [{machine.root}/own.pem]"
    for text in (files + own, own):
        assert (await config(text))["caCerts"] == {"certs": [pem.replace("AAAA", "BBBB")]}
    # Ours has them built in.
    assert "caCerts" not in await config("")
