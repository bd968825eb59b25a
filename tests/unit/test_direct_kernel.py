"""The kernel that QEMU starts by itself, taken out of the one that unpacks itself; whatever else the file may be."""

from __future__ import annotations

import lzma
import os
import struct
import zlib
from pathlib import Path

import pytest

from lima_kernels.environment import direct_kernel as direct


def note(owner: bytes, kind: int, description: bytes = b"1234") -> bytes:
    padded = (owner + b"\0" * (-len(owner) % 4), description + b"\0" * (-len(description) % 4))
    return struct.pack("<III", len(owner), len(description), kind) + b"".join(padded)


PVH = note(b"Xen\0", 6, b"linux\0") + note(b"Xen\0", 18)


def elf(notes: bytes = PVH) -> bytes:
    """An ELF file with a loadable segment and one of notes."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    segments = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 64, 64, 8)
    segments += struct.pack("<IIQQQQQQ", 4, 4, 176, 0, 0, len(notes), len(notes), 4)
    return head + segments + notes


def bzimage(payload: bytes, sectors: int = 3) -> bytes:
    """A kernel that unpacks itself: its header, its setup code, and what it unpacks behind some more code."""
    before = b"code"
    head = bytearray((sectors + 1) * 512)
    head[0x1F1] = sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, len(before), len(payload))
    return bytes(head) + before + payload + b"more code"


def xz(data: bytes) -> bytes:
    # As the kernel's own build has it: the size comes behind.
    return lzma.compress(data, check=lzma.CHECK_CRC32) + struct.pack("<I", len(data))


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return tmp_path / "vmlinuz"


@pytest.mark.parametrize("packed", [xz(elf()), zlib.compress(elf(), wbits=31)], ids=["xz", "gzip"])
def test_it_is_unpacked_once(kernel: Path, packed: bytes) -> None:
    kernel.write_bytes(bzimage(packed))
    made = direct.direct_kernel(kernel)
    assert made == kernel.with_name("vmlinux")
    assert made.read_bytes() == elf()
    before = made.stat().st_ino
    assert direct.direct_kernel(kernel) == made
    assert made.stat().st_ino == before
    assert sorted(os.listdir(kernel.parent)) == ["vmlinux", "vmlinuz"]


def test_that_of_an_older_image_is_made_anew(kernel: Path) -> None:
    made = kernel.with_name("vmlinux")
    made.write_bytes(b"older")
    os.utime(made, (1, 1))
    kernel.write_bytes(bzimage(xz(elf())))
    assert direct.direct_kernel(kernel).read_bytes() == elf()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"MZ" * 2000,
        bzimage(b"(\xb5/\xfd" + bytes(50)),
        bzimage(xz(elf())[:40]),
        bzimage(xz(b"no ELF file")),
        bzimage(xz(elf(notes=note(b"Xen\0", 6)))),
        bzimage(xz(elf(notes=note(b"GNU\0", 18)))),
        bzimage(xz(elf()[:70])),
        bzimage(xz(elf(notes=b"\xff" * 40))),
    ],
    ids=["empty", "other", "zstd", "cut", "no-elf", "no-pvh", "other-owner", "cut-elf", "bad-notes"],
)
def test_what_cannot_be_started_that_way_is_left_as_it_is(kernel: Path, content: bytes) -> None:
    kernel.write_bytes(content)
    assert direct.direct_kernel(kernel) == kernel
    assert os.listdir(kernel.parent) == ["vmlinuz"]


def test_what_unpacks_without_end_is_left(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "LIMIT", 4096)
    kernel.write_bytes(bzimage(xz(elf() + bytes(1 << 20))))
    assert direct.direct_kernel(kernel) == kernel


def test_without_room_it_is_only_slower(kernel: Path) -> None:
    kernel.write_bytes(bzimage(xz(elf())))
    kernel.parent.chmod(0o500)
    try:
        assert direct.direct_kernel(kernel) == kernel
    finally:
        kernel.parent.chmod(0o700)
