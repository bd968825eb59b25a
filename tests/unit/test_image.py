"""Guest images on this host: their manifests, and what a build is told."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lima_kernels import paths
from lima_kernels.environment import building, image, qcow2, recipe
from lima_kernels.errors import ImageError
from lima_kernels.guest import forkserver

from .conftest import Machine

VERSION_1 = {
    "version": 1,
    "recipe": "r" * 64,
    "arch": "x86_64",
    "disk": "disk.qcow2",
    "kernel": "vmlinuz",
    "initrd": "initrd",
    "cmdline": "ro",
}
NAMES = ("disk.qcow2", "vmlinuz", "initrd")
BAKED = {"name": "tables", "lock": "a" * 64, "base_sha256": "b" * 64}


def put(name: str, **manifest: Any) -> Path:
    directory = paths.images_directory() / name
    directory.mkdir(parents=True)
    for file in NAMES:
        (directory / file).write_bytes(file.encode())
    (directory / image.MANIFEST).write_text(json.dumps({**VERSION_1, **manifest}))
    return directory


def digests() -> dict[str, str]:
    return {file: hashlib.sha256(file.encode()).hexdigest() for file in NAMES}


def test_an_image_of_an_earlier_version_is_still_used(machine: Machine) -> None:
    put("old")
    found = image.find_image("old")
    assert found is not None
    assert (found.arch, found.sha256, found.base_sha256, found.environment) == ("x86_64", "", "", None)
    assert not image.is_current("old")


def test_an_image_is_known_by_its_disk(machine: Machine) -> None:
    directory = put("new", version=2, sha256=digests())
    found = image.find_image("new")
    assert found is not None
    assert found.sha256 == found.base_sha256 == digests()["disk.qcow2"]
    assert image.damaged("new") == []
    (directory / "initrd").write_text("other")
    assert image.damaged("new") == ["initrd"]


def test_an_image_with_an_environment_stands_for_its_base_and_is_found_by_the_lock(machine: Machine) -> None:
    put("plain", version=2, sha256=digests())
    put("with", version=2, sha256=digests(), environment=BAKED)
    found = image.find_baked("a" * 64, "x86_64")
    assert found is not None
    assert (found.disk.parent.name, found.base_sha256) == ("with", "b" * 64)
    assert image.find_baked("a" * 64, "aarch64") is None
    assert image.find_baked("c" * 64, "x86_64") is None


@pytest.mark.parametrize("name", ["", ".", "..", ".new", "a/b", "/etc", "a\0b"])
def test_what_is_no_name_is_refused(machine: Machine, name: str) -> None:
    with pytest.raises(ImageError, match=r"cannot be an image's name\."):
        image.find_image(name)


@pytest.mark.parametrize(
    ("manifest", "what"),
    [
        ({"version": 3}, "The image was made by a newer lima-kernels."),
        ({"disk": "../../secret"}, "'../../secret' is not a file's name."),
        ({"disk": "/etc/passwd"}, "'/etc/passwd' is not a file's name."),
        ({"kernel": ""}, "'' is not a file's name."),
        ({"arch": 7}, "Expected `str`, got `int` - at `$.arch`."),
        ({"sha256": {"disk.qcow2": 1}}, "Expected `str`, got `int` - at `$.sha256[...]`."),
    ],
)
def test_a_damaged_manifest_is_named(machine: Machine, manifest: dict[str, Any], what: str) -> None:
    directory = put("bad", **manifest)
    with pytest.raises(ImageError) as raised:
        image.find_image("bad")
    assert raised.value.message.startswith(f"The image directory {directory} cannot be used. ")
    assert raised.value.message.endswith(what)
    assert raised.value.hint


def test_a_manifest_that_is_no_json_is_named(machine: Machine) -> None:
    (put("bad") / image.MANIFEST).write_bytes(b"\xff{")
    with pytest.raises(ImageError, match=r"Its image\.json is damaged"):
        image.find_image("bad")


def test_a_lacking_file_is_named(machine: Machine) -> None:
    (put("half") / "initrd").unlink()
    with pytest.raises(ImageError, match=r"The image half lacks its file .*/initrd\."):
        image.find_image("half")


def test_a_build_that_cannot_be_put_in_place_leaves_the_older_one(machine: Machine, tmp_path: Path) -> None:
    directory = put("mine")
    built = tmp_path / "built"
    built.mkdir()
    (built / "vmlinuz").symlink_to("nowhere")
    with pytest.raises(OSError, match=r"nowhere|vmlinuz"):
        building.publish(built, directory)
    assert image.find_image("mine") is not None
    assert [entry.name for entry in directory.parent.iterdir()] == ["mine"]


def test_a_build_takes_the_place_of_an_older_one(machine: Machine, tmp_path: Path) -> None:
    directory = put("mine")
    (tmp_path / "only").write_text("new")
    building.publish(tmp_path, directory)
    assert [entry.name for entry in directory.iterdir()] == ["only"]
    assert [entry.name for entry in directory.parent.iterdir()] == ["mine"]


def test_pip_gets_pinned_packages_with_hashes_and_no_addresses() -> None:
    text = recipe.REQUIREMENTS.read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pins = [line for line in lines if not line.startswith(" ")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+ \\", line) for line in pins)
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines if line not in pins)
    assert "://" not in text
    names = {line.partition("==")[0] for line in pins}
    assert {"uv", "ipykernel", "ipywidgets", "anywidget", "psutil", "numpy", "pandas", "matplotlib"} <= names


@pytest.mark.parametrize("script", recipe.Scripts._fields)
def test_a_script_is_one_for_the_shell(script: str) -> None:
    text = getattr(recipe.scripts(), script)
    subprocess.run(["sh", "-n"], input=text, text=True, check=True, timeout=10)
    assert not re.search(r"%\(|%%", text)


def layer(tmp_path: Path) -> recipe.Layer:
    program = Path(forkserver.__file__).parent
    return recipe.Layer("tables", "a" * 64, "c" * 64, "pylock", {"bash": "5.2-1", "linux-image-amd64": "6.1"}, program)


def test_a_layer_has_the_packages_of_its_lock_and_no_others(tmp_path: Path) -> None:
    argv = recipe.mmdebstrap("x86_64", [], tmp_path / "tree.tar", layer(tmp_path))
    assert "--include=bash=5.2-1,linux-image-amd64=6.1" in argv
    assert any(f"copy-in {tmp_path / 'layer'} /usr/local/lib/lima-kernels" in word for word in argv)
    plain = recipe.mmdebstrap("x86_64", [], tmp_path / "tree.tar")
    assert not any("layer /" in word for word in plain)


def test_a_layers_program_runs_with_the_standard_library_alone(tmp_path: Path) -> None:
    layer(tmp_path).lay_out(tmp_path / "layer")
    wanted = json.loads((tmp_path / "layer" / "wanted.json").read_text())
    assert wanted == {
        "environments": "/opt/lima-kernels/environments",
        "name": "tables",
        "lock": "a" * 64,
        "python": "c" * 64,
        "pylock": "pylock",
        "build": f"{'c' * 12}-image",
    }
    program = recipe._BAKE.replace(f"/{recipe._LAYER}", str(tmp_path / "layer")).replace(
        "main()", "print(main.__name__)"
    )
    done = subprocess.run(
        ["python3", "-I", "-S", "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "main\n"


def test_packages_that_are_not_the_locks_are_named() -> None:
    with pytest.raises(ImageError) as raised:
        building._check_packages({"bash": "1", "gone": "2"}, {"bash": "3", "new": "4"})
    assert raised.value.message == "The image's Debian packages are not those of the lock: 3 differ."
    assert raised.value.context == (
        *("bash: expected 1, got 3", "gone: expected 2, got none"),
        "new: expected none, got 4",
    )


def header(*, version: int = 3, backing: int = 0, size: int = 1 << 30, crypt: int = 0, **more: int) -> bytes:
    """The beginning of a qcow2 image."""
    snapshots, features = more.get("snapshots", 0), more.get("features", 8)
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, backing, 0, 16, size, crypt, 1, 0, 0, 0, snapshots, 0)
    return (head + struct.pack(">QQQII", features, 0, 0, 4, 104)).ljust(512, b"\0")


def test_a_disk_as_we_make_it_is_taken(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(header())
    qcow2.check_foreign(tmp_path / "disk")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "Its disk is no qcow2 image."),
        (b"\0" * 512, "Its disk is no qcow2 image."),
        (header()[:80], "Its disk is no qcow2 image."),
        (header(version=2), "Its disk is a qcow2 image of version 2, and not 3."),
        (header(backing=256), "Its disk is based on another file, which could be any of this host's."),
        (header(features=4), "Its disk is not all in one file, or damaged, or of a kind that we do not make."),
        (header(crypt=1), "Its disk is encrypted or has snapshots."),
        (header(snapshots=1), "Its disk is encrypted or has snapshots."),
        (header(size=1 << 50), "Its disk would be 1048576 GiB large."),
    ],
)
def test_a_disk_that_would_reach_for_more_is_refused(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "disk").write_bytes(data)
    with pytest.raises(ImageError) as raised:
        qcow2.check_foreign(tmp_path / "disk")
    assert raised.value.message == what
