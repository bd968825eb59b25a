"""The script that makes a guest ready for kernels: Python, ipykernel, and what the environment asks for.

Lima runs it as root at every boot. It does its work once for each content; the host waits for the digest it leaves.
"""

from __future__ import annotations

import hashlib
import shlex

from .. import paths
from .spec import Environment

BASE_REQUIREMENTS = ("ipykernel>=6.29", "ipywidgets", "anywidget", "psutil")

_SCRIPT = r"""#!/bin/bash
# Written by lima-kernels. Lima puts the guest user's id in.
set -eu
venv={venv}
mkdir -p {prefix}
# cloud-init writes mount points into fstab as they are: spaces in them have to be escaped (fstab(5)).
awk -F '\t' -v OFS='\t' '$4 ~ /comment=cloudconfig/ {{ gsub(/ /, "\\040", $2) }} {{ print }}' \
  /etc/fstab >/etc/fstab.lima-kernels
if cmp -s /etc/fstab /etc/fstab.lima-kernels; then
  rm /etc/fstab.lima-kernels
else
  mv /etc/fstab.lima-kernels /etc/fstab
  mount -a -t 9p,virtiofs || true
fi
if [ "$(cat {provisioned} 2>/dev/null)" = {digest} ]; then
  # An image may have been built for another user id.
  [ "$(stat -c %u "$venv")" = "{{{{.UID}}}}" ] || chown -R "{{{{.UID}}}}" "$venv"
  exit 0
fi
rm -f {provisioned} {failed}
log={prefix}/provision.log
exec >"$log" 2>&1
trap 'code=$?; [ $code = 0 ] || tail -n 15 "$log" > {failed}' EXIT
packages=({packages})
python3 -c 'import venv, ensurepip' 2>/dev/null || packages+=(python3-venv)
if [ ${{#packages[@]}} -gt 0 ]; then
  command -v apt-get >/dev/null || {{ echo "apt-get was not found: packages need a Debian or Ubuntu guest"; exit 1; }}
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  apt-get install -y -q --no-install-recommends "${{packages[@]}}"
fi
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
[ -e /etc/pip.conf ] || printf '[global]\ncert = %s\n' /etc/ssl/certs/ca-certificates.crt >/etc/pip.conf
requirements=({requirements})
if [ ${{#requirements[@]}} -gt 0 ]; then
  PIP_ROOT_USER_ACTION=ignore "$venv/bin/pip" install --disable-pip-version-check "${{requirements[@]}}"
fi
chown -R "{{{{.UID}}}}" "$venv"
echo {digest} >{provisioned}
"""


def provision_digest(environment: Environment, *, has_base: bool) -> str:
    """Return what the guest will say when it is ready for this environment.

    :param has_base: the image brings ipykernel with it.
    """
    if has_base and not environment.apt and not environment.python:
        return paths.GUEST_PROVISIONED_BY_IMAGE
    base = "base" if has_base else " ".join(BASE_REQUIREMENTS)
    parts = (base, *environment.apt, "\0", *environment.python)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def provision_script(environment: Environment, *, has_base: bool) -> str:
    """Return the provision script for an environment."""
    requirements = environment.python if has_base else (*BASE_REQUIREMENTS, *environment.python)
    return _SCRIPT.format(
        venv=paths.GUEST_VENV,
        prefix=paths.GUEST_PREFIX,
        provisioned=paths.GUEST_PROVISIONED,
        failed=paths.GUEST_PROVISION_FAILED,
        digest=provision_digest(environment, has_base=has_base),
        packages=shlex.join(environment.apt),
        requirements=shlex.join(requirements),
    )
