"""The certificate authorities that this host trusts beyond its distribution's own: a company's proxy, for instance.

A guest that does not know them can reach no package index.
"""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# Where distributions keep what they ship (Debian, Alpine, Arch) ...
_SHIPPED = Path("/usr/share/ca-certificates")
# ... and where an administrator adds to it (Debian; Fedora and its relatives).
_ADDED = (Path("/usr/local/share/ca-certificates"), Path("/etc/pki/ca-trust/source/anchors"))


def certificates_in(text: str) -> list[str]:
    """Return the certificates of a PEM text, each as a PEM text; private keys and whatever else is in it stay out."""
    return [match.group().replace("\r", "") for match in _PEM.finditer(text)]


def _certificates(file: Path) -> list[str]:
    try:
        return certificates_in(file.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return []


def _bundle() -> Path | None:
    cafile = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    return Path(cafile) if cafile else None


def host_certificates() -> tuple[str, ...]:
    """Return the added authorities' certificates as PEM texts, without duplicates, in a stable order."""
    found: dict[str, None] = {}
    for directory in _ADDED:
        for file in sorted(directory.glob("**/*")):
            found.update(dict.fromkeys(_certificates(file)))
    bundle = _bundle()
    if bundle and _SHIPPED.is_dir():
        shipped = {pem for file in _SHIPPED.glob("**/*.crt") for pem in _certificates(file)}
        found.update(dict.fromkeys(pem for pem in _certificates(bundle) if pem not in shipped))
    return tuple(found)
