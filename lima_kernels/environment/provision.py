"""The script that makes a guest ready for kernels: Python, ipykernel, and what the environment asks for.

Lima runs it as root at every boot. It does its work once for each content; the host waits for the digest it leaves.
"""

from __future__ import annotations

import hashlib
import shlex

from .. import paths
from ..errors import ConfigurationError
from .keys import Environment, ProvisionMode, ProvisionScript, ProvisionTime

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
own() {{
  for tree in "$@"; do
    [ ! -e "$tree" ] || [ "$(stat -c %u "$tree")" = "{{{{.UID}}}}" ] || chown -R "{{{{.UID}}}}" "$tree"
  done
}}
if [ "$(cat {provisioned} 2>/dev/null)" = {digest} ]; then
  # An image may have been built for another user id.
  own "$venv" {environments}
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
wanted={python}
if [ -n "$wanted" ]; then
  python=$("$venv/bin/python" -c 'import platform; print(platform.python_version())')
  case "$python." in
    "$wanted".*) ;;
    *) echo "the guest has Python $python, and the environment is for $wanted"; exit 1 ;;
  esac
fi
if [ ${{#requirements[@]}} -gt 0 ]; then
  PIP_ROOT_USER_ACTION=ignore "$venv/bin/pip" install --disable-pip-version-check "${{requirements[@]}}"
fi
chown -R "{{{{.UID}}}}" "$venv"
own {environments}
echo {digest} >{provisioned}
"""


# A script that is to run once: in a file of its own, for its first line may name what runs it. The end of the text is
# marked by its digest, which it cannot hold.
_ONCE = """#!/bin/bash
# Written by lima-kernels: runs until it has succeeded once on this disk.
set -eu
done={directory}/{digest}
[ ! -e "$done" ] || exit 0
mkdir -p {directory}
script="$done.$$"
trap 'rm -f "$script"' EXIT
cat >"$script" <<'{digest}'
{script}
{digest}
chmod 700 "$script"
"$script"
touch "$done"
"""
_ONCE_DIRECTORIES = {
    ProvisionMode.SYSTEM: f"{paths.GUEST_PREFIX}/once",
    ProvisionMode.USER: f'"$HOME"/{paths.GUEST_STATE}/once',
}


def own_script(script: ProvisionScript) -> dict[str, str]:
    """Return a script of the environment's own as Lima is told of it."""
    text = script.script
    if script.when is ProvisionTime.ONCE:
        digest = hashlib.sha256(text.encode()).hexdigest()
        text = _ONCE.format(directory=_ONCE_DIRECTORIES[script.mode], digest=digest, script=text)
    return {"mode": script.mode.value, "script": text}


def provision_digest(environment: Environment, *, has_base: bool) -> str:
    """Return what the guest will say when it is ready for this environment.

    :param has_base: the image brings ipykernel with it.
    """
    requirements, python = environment.requirements, environment.python_version
    if has_base and not environment.apt and not requirements and not python:
        return paths.GUEST_PROVISIONED_BY_IMAGE
    base = "base" if has_base else " ".join(BASE_REQUIREMENTS)
    parts = (base, *environment.apt, "\0", *requirements, *(("\0", python) if python else ()))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def provision_script(environment: Environment, *, has_base: bool) -> str:
    """Return the provision script for an environment.

    :raises ConfigurationError: when what it names says exact versions, which only a lock brings into a guest.
    """
    for name in ("pylock.toml", "uv.lock"):
        if name in environment.python_texts:
            raise ConfigurationError(
                f"The environment's {name} cannot be obeyed without a lock.",
                hint="Make one, beside the environment file: lima-kernels env lock",
            )
    requirements = environment.requirements if has_base else (*BASE_REQUIREMENTS, *environment.requirements)
    return _SCRIPT.format(
        venv=paths.GUEST_VENV,
        prefix=paths.GUEST_PREFIX,
        provisioned=paths.GUEST_PROVISIONED,
        failed=paths.GUEST_PROVISION_FAILED,
        environments=paths.GUEST_ENVIRONMENTS,
        digest=provision_digest(environment, has_base=has_base),
        packages=shlex.join(environment.apt),
        requirements=shlex.join(requirements),
        python=shlex.quote(environment.python_version),
    )
