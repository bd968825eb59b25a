"""The host key of a guest as first seen, in a file of its instance."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..errors import HostError, HostKeyChanged
from ..paths import replace_privately


class PinnedKey(msgspec.Struct, frozen=True):
    """A guest's host key as first seen; ``boot`` limits it to one boot where the guest makes new keys each time."""

    key: str
    boot: str = ""


class KeyStore:
    """The pinned host key of one instance, in a 0600 file.

    :param boot: names the present boot when a pin holds for one boot only; empty when it holds for the instance's life.
    """

    def __init__(self, file: Path, boot: str = "") -> None:
        self._file = file
        self._boot = boot

    def pinned(self) -> str | None:
        """Return the pinned key in OpenSSH's format, or None before first contact."""
        try:
            found = msgspec.json.decode(self._file.read_bytes(), type=PinnedKey)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise HostKeyChanged(
                f"The pinned host key in {self._file} cannot be read: {error}.",
                hint="If you trust the VM, remove the file and try again.",
            ) from error
        return found.key if found.boot == self._boot else None

    def pin(self, key: str) -> None:
        """Keep the key of the first contact."""
        data = msgspec.json.encode(PinnedKey(key, self._boot))
        try:
            replace_privately(self._file, data)
        except OSError as error:
            raise HostError(
                f"The VM's host key cannot be written to {self._file}: {error.strerror}.",
                hint="Free some space there, or mend its permissions.",
            ) from error

    def refuse(self) -> HostKeyChanged:
        return HostKeyChanged(
            "The VM shows another SSH host key than at first contact; the connection was refused.",
            hint=f"If you made the VM anew or changed its key, remove {self._file} and try again.",
        )
