"""Write, list and remove the kernel specs that start kernels in Lima VMs."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from jupyter_client.kernelspec import KernelSpecManager

from .environment import locked, spec
from .environment.spec import Environment
from .errors import ConfigurationError, HostError, nearest, printable
from .guest.kernels import GuestSpec
from .lima.limactl import check_name
from .settings import DEFAULT_INSTANCE

PROVISIONER = "lima-provisioner"
DEFAULT_NAME = "lima"
DEFAULT_DISPLAY_NAME = "Linux (Lima)"
# Not "." or "..": Jupyter empties the directory that the name leads to.
_SPEC_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_LOGOS = ("logo-32x32.png", "logo-64x64.png", "logo-svg.svg")


class Request(NamedTuple):
    """What a kernel spec is to say; ``config`` is the provisioner's, as in kernel.json.

    ``guest_spec`` is the guest's own kernel spec where one is meant, None for ipykernel of the guest's environment.
    """

    name: str
    display_name: str
    config: dict[str, Any]
    guest_spec: GuestSpec | None = None


class Installed(NamedTuple):
    """A kernel spec of ours that Jupyter finds."""

    name: str
    display_name: str
    directory: Path
    config: dict[str, Any]

    @property
    def instance(self) -> str:
        """The VM's name; what the provisioner takes when none is named."""
        return str(self.config.get("instance", DEFAULT_INSTANCE))


class _Stanza(msgspec.Struct, frozen=True):
    provisioner_name: str = ""
    config: dict[str, Any] = {}


class _Metadata(msgspec.Struct, frozen=True):
    kernel_provisioner: _Stanza | None = None


class _Document(msgspec.Struct, frozen=True):
    display_name: str = ""
    metadata: _Metadata = _Metadata()


def make_request(
    name: str, display_name: str, *, environment: Path | None, instance: str | None, attach: bool
) -> Request:
    """Check what a user asked for and return the kernel spec's content.

    :raises ConfigurationError: when a name cannot be used, or the environment file cannot be obeyed.
    """
    if not _SPEC_NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot be a kernel spec's name.", hint="Use letters, digits, '.', '_' and '-' only."
        )
    chosen = instance or (_instance_of(name, environment) if environment else DEFAULT_INSTANCE)
    check_name(chosen)
    config: dict[str, Any] = {"instance": chosen}
    if environment is not None:
        spec.load(environment)
        config["environment"] = str(environment.resolve())
    if attach:
        config["attach"] = True
    return Request(name.lower(), display_name, config)


def _instance_of(name: str, file: Path) -> str:
    described = locked.describe(file)
    return instance_for(file, described.environment) if described.locked else f"lima-kernels-{name}"


def instance_for(file: Path, environment: Environment) -> str:
    """Return the VM of a locked environment: its kernel spec's, or that of another one of the same machine.

    Environments that differ in their Python packages only share one VM; those that want nothing else of it share that
    of the default kernel.
    """
    ours = [found for found in installed() if "environment" in found.config]
    same = next((found for found in ours if found.config["environment"] == str(file.resolve())), None)
    if same is not None:
        return same.instance
    # What others made is theirs.
    ours = [found for found in ours if not found.config.get("attach")]
    if environment.machine_digest == spec.DEFAULT.machine_digest:
        return DEFAULT_INSTANCE
    for found in ours:
        with contextlib.suppress(ConfigurationError):
            other = locked.describe(Path(found.config["environment"]))
            if other.locked and other.environment.machine_digest == environment.machine_digest:
                return found.instance
    return f"lima-kernels-{locked.name_of(file, environment)}"


def for_guest_kernel(request: Request, kernel: str, guest_spec: GuestSpec, of: str = "Lima") -> Request:
    """Return the request for a kernel that the guest itself has.

    :param kernel: its kernel spec's name in the guest; gives the display name where the request has none.
    :param of: what the display name says beside the guest's own word.
    """
    shown = printable(guest_spec.display_name).strip() or kernel
    return request._replace(
        display_name=request.display_name or f"{shown} ({of})",
        config={**request.config, "kernel": kernel},
        guest_spec=guest_spec,
    )


def _document(request: Request) -> dict[str, Any]:
    stanza = {"provisioner_name": PROVISIONER, "config": request.config}
    guest_spec = request.guest_spec
    if guest_spec is not None:
        return {
            # For information: the guest starts what its own spec says.
            "argv": list(guest_spec.argv),
            "display_name": request.display_name,
            "language": guest_spec.language,
            # Any other word of the guest's would make Jupyter refuse the spec.
            "interrupt_mode": "message" if guest_spec.interrupt_mode == "message" else "signal",
            "metadata": {"kernel_provisioner": stanza},
        }
    return {
        "argv": ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": request.display_name,
        "language": "python",
        "interrupt_mode": "signal",
        "metadata": {"debugger": True, "supported_encryption": "curve", "kernel_provisioner": stanza},
    }


def write(request: Request, *, user: bool, prefix: str | None) -> Path:
    """Install a kernel spec and return its directory; one of that name is replaced.

    :param user: install for this user only; else below ``prefix``, or for all users when that is None.
    :raises HostError: when the directory cannot be written.
    """
    with tempfile.TemporaryDirectory() as work:
        directory = Path(work)
        directory.chmod(0o755)
        (directory / "kernel.json").write_text(json.dumps(_document(request), indent=2) + "\n")
        for logo in _LOGOS:
            (directory / logo).write_bytes(files(__package__).joinpath("resources", logo).read_bytes())
        try:
            target = KernelSpecManager().install_kernel_spec(
                str(directory), kernel_name=request.name, user=user, prefix=prefix
            )
        except OSError as error:
            raise HostError(
                f"The kernel spec could not be written: {error}.", hint="Try --user, or --prefix DIRECTORY."
            ) from error
    return Path(target)


def installed() -> list[Installed]:
    """Return our kernel specs, whether or not their provisioner can be loaded."""
    found = []
    for name, directory in sorted(KernelSpecManager().find_kernel_specs().items()):
        try:
            document = msgspec.json.decode((Path(directory) / "kernel.json").read_bytes(), type=_Document)
        except (OSError, msgspec.DecodeError):
            # Somebody else's, and damaged.
            continue
        stanza = document.metadata.kernel_provisioner
        if stanza is not None and stanza.provisioner_name == PROVISIONER:
            found.append(Installed(name, document.display_name, Path(directory), stanza.config))
    return found


def remove(name: str) -> Path:
    """Remove a kernel spec of ours and return where it was; VMs stay.

    :raises ConfigurationError: when there is none of that name.
    """
    ours = {found.name: found for found in installed()}
    name = name.lower()
    if name not in ours:
        raise ConfigurationError(f"There is no kernel spec {name!r} of ours.", hint=nearest(name, list(ours)))
    return Path(KernelSpecManager().remove_kernel_spec(name))
