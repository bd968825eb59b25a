"""An image's kernel in the form that a virtual machine starts soonest: uncompressed, as QEMU loads it by itself.

A kernel that unpacks itself does that with the guest's CPU, and comes by way of firmware: emulated, half of the time to
its first line. QEMU reads an ELF file that has a PVH entry straight into the guest's memory (the PVH boot ABI, and
Linux's ``Documentation/arch/x86/boot.rst`` for the compressed file).
"""

from __future__ import annotations

import lzma
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

# No kernel is larger; what an image from elsewhere unpacks to is not to fill the disk.
LIMIT = 256 << 20
NAME = "vmlinux"
_SETUP_SECTORS = 0x1F1
_MAGIC = 0x202
_PAYLOAD = 0x248
_PVH_NOTE = 18


def serves(arch: str) -> bool:
    """Tell whether a VM of this architecture starts that way on this host: where Lima runs it with QEMU."""
    return arch == "x86_64" and sys.platform == "linux"


def direct_kernel(kernel: Path) -> Path:
    """Return the uncompressed kernel, which is made beside the compressed one; that one itself where it cannot be."""
    made = kernel.with_name(NAME)
    try:
        if made.exists() and made.stat().st_mtime >= kernel.stat().st_mtime:
            return made
        elf = uncompressed(kernel.read_bytes())
        if not elf or not has_pvh_entry(elf):
            return kernel
        with tempfile.NamedTemporaryFile(dir=kernel.parent, prefix=f".{NAME}-", delete=False) as file:
            try:
                file.write(elf)
                file.flush()
                os.replace(file.name, made)
            except BaseException:
                Path(file.name).unlink()
                raise
    except OSError:
        # No room, or not ours to write: it is only slower.
        return kernel
    return made


def uncompressed(kernel: bytes) -> bytes:
    """Return the ELF file in a bzImage; empty when there is none that we can read."""
    try:
        if kernel[_MAGIC : _MAGIC + 4] != b"HdrS":
            return b""
        offset, length = struct.unpack_from("<II", kernel, _PAYLOAD)
        start = (kernel[_SETUP_SECTORS] + 1) * 512 + offset
        payload = kernel[start : start + length]
        if payload.startswith(b"\xfd7zXZ\0"):
            unpacked = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload, LIMIT)
        elif payload.startswith(b"\x1f\x8b"):
            unpacked = zlib.decompressobj(31).decompress(payload, LIMIT)
        else:
            return b""
    except (struct.error, IndexError, lzma.LZMAError, zlib.error):
        return b""
    return unpacked if len(unpacked) < LIMIT else b""


def has_pvh_entry(elf: bytes) -> bool:
    """Tell whether QEMU can start an ELF file: whether it has Xen's note of a 32-bit entry."""
    try:
        return any(owner == b"Xen\0" and kind == _PVH_NOTE for owner, kind in _notes(elf))
    except struct.error:
        return False


def _notes(elf: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the notes' owners and kinds (elf(5), 64 bits)."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return
    (table,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    for number in range(count):
        kind, _, position, _, _, length = struct.unpack_from("<IIQQQQ", elf, table + number * size)
        end = position + length
        while kind == 4 and position < min(end, len(elf)):
            owner, description, note = struct.unpack_from("<III", elf, position)
            yield elf[position + 12 : position + 12 + owner], note
            position += 12 + (owner + 3 & ~3) + (description + 3 & ~3)
