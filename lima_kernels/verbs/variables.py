"""env: what a program on the host needs to know to use what runs in a VM."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from ..errors import InstanceError
from ..lima.models import Instance
from ..magics.results import Table
from .context import Context

# What programs call the place of a socket, by the name of the file that Lima's templates give it on the host.
_SOCKETS = {
    "docker.sock": ("DOCKER_HOST",),
    "podman.sock": ("CONTAINER_HOST", "DOCKER_HOST"),
    "buildkitd.sock": ("BUILDKIT_HOST",),
}
_KUBECONFIG = "kubeconfig.yaml"


def _variables(instance: Instance) -> Iterator[tuple[str, str]]:
    for forward in instance.config.port_forwards:
        for name in _SOCKETS.get(Path(forward.host_socket).name, ()):
            yield name, f"unix://{forward.host_socket}"
    for copy in instance.config.copy_to_host:
        if Path(copy.host_file).name == _KUBECONFIG:
            yield "KUBECONFIG", copy.host_file


async def env(context: Context, options: argparse.Namespace) -> Table:
    """Return what a VM's template offers to the host, as variables; who asked sets them.

    :raises InstanceError: when it offers nothing, or does not run.
    """
    name = context.instance(options.name)
    instance = await context.limactl.get(name)
    found = dict(_variables(instance))
    if not found:
        raise InstanceError(
            f"The VM {name!r} offers no socket or kubeconfig to this host.",
            hint="Templates that do: docker, podman, buildkit, k3s, k8s",
        )
    if not instance.is_up:
        raise InstanceError(f"The VM {name!r} does not run.", hint=f"%lima start {name}")
    return Table(("name", "value"), found.items())
