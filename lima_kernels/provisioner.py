"""The adapter between jupyter_client and our sessions: no logic of its own beyond translation."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import zmq
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from . import paths, wishes
from .control import Control
from .environment import spec
from .errors import ConfigurationError, InstanceError, LimaKernelsError
from .guest.calls import Answer
from .guest.forwards import Transport
from .guest.kernels import KernelFacts
from .guest.mounts import directory_to_share
from .instances import Wish
from .launch import Launch
from .lima import ending
from .runtime import runtime
from .session import Session, open_session
from .settings import Policy, Settings

# An emulated guest takes its time to end Python.
SHUTDOWN_WAIT = 10.0
# Seconds that a look takes at most at a kernel which was asked to end.
END_WAIT = 1.0


class _Last(enum.Enum):
    """What became of the last kernel, as far as the next one has to know it."""

    ENDED = "it ended as somebody wanted, or there was none"
    DIED = "it died"
    GIVEN_UP = "it died, and starting another one in its place failed"


# Its metaclass is one of traitlets' too, which mypy cannot see.
class LimaProvisioner(Settings, KernelProvisionerBase):  # type: ignore[metaclass]
    """Starts kernels in a Lima VM.

    Its traits can be set in Jupyter's config files as ``c.LimaProvisioner.…``, too.
    """

    not_settings = ("kernel_id", "kernel_spec", "parent", "config", "log")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.connection_info = {}
        self._session: Session | None = None
        self._opening: asyncio.Task[Any] | None = None
        # Why the last kernel died, for the stderr of the next one.
        self._obituary = ""
        self._last = _Last.ENDED
        # Somebody has asked the kernel to end, maybe for another one; nobody has since a kernel died of itself.
        self._is_asked_for = False
        self._cwd: Path | None = None
        self._shown: Path | None = None
        self._notebook = ""

    # What the manager asks all the time; served from what is known here.

    @property
    def has_process(self) -> bool:
        # What was given up has ended, which the manager learns by `poll`; without a process it would never look.
        return self._session is not None or self._last is _Last.GIVEN_UP

    async def poll(self) -> int | None:
        session = self._session
        if session is None:
            return 0
        if session.exit is None and self._is_asked_for:
            # The manager looks every tenth of a second; we know at once.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_WAIT):
                    await runtime().run(session.wait())
        return None if session.exit is None else session.exit.code

    async def wait(self) -> int | None:
        session = self._session
        if session is None:
            return 0
        code = await runtime().run(session.wait())
        await self._close()
        return code

    # Starting

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Work out what the kernel gets: arguments, variables, directory."""
        # The provisioner is used again for a restart.
        await self._close()
        extra = list(kwargs.pop("extra_arguments", None) or [])
        kwargs = await super().pre_launch(cmd=self._arguments() + extra, **kwargs)
        self._notebook = kwargs["env"].get("JPY_SESSION_NAME", "")
        named = self.kernel_spec.env if self.kernel_spec else {}
        kwargs["env"] = {
            name: value
            for name, value in kwargs["env"].items()
            if name in named or any(fnmatchcase(name, pattern) for pattern in self.environment_variables)
        }
        return kwargs

    def _arguments(self) -> list[str]:
        """The arguments that the kernel spec has for ipykernel beyond the connection file."""
        argv = list(self.kernel_spec.argv)
        if self.kernel:
            return []
        if not any("ipykernel" in part for part in argv) or "{connection_file}" not in argv:
            raise ConfigurationError(
                f"The kernel spec's argv {argv} does not start ipykernel.",
                hint="Write the spec anew: lima-kernels install",
            )
        return argv[argv.index("{connection_file}") + 1 :]

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        is_automatic = self._last is not _Last.ENDED and not self._is_asked_for and self._has_restarter()
        if is_automatic and self._last is _Last.GIVEN_UP:
            return self.connection_info
        try:
            await self._start(cmd, **kwargs)
        except LimaKernelsError as error:
            if not is_automatic:
                raise
            self.log.error("%s", error)
            self._last = _Last.GIVEN_UP
            return self.connection_info
        self._obituary = ""
        self._last, self._is_asked_for = _Last.ENDED, False
        return self._connection_info()

    def _has_restarter(self) -> bool:
        """Tell whether the manager starts dead kernels again by itself, as a server's does.

        An error would end its restarter before that has told anybody, and clients would wait for ever. By kernels that
        are dead at once it gives up as it does it always: it calls the kernel dead.
        """
        return hasattr(self.parent, "restarter_class") and bool(getattr(self.parent, "autorestart", False))

    async def _start(self, cmd: list[str], **kwargs: Any) -> None:
        cwd = Path(os.path.abspath(kwargs.get("cwd") or Path.cwd()))
        described = wishes.described(self)
        environment = described.environment
        directory = await self._directory(cwd, environment) if self.mount else None
        wish = wishes.wish_for(self, described, directory)
        self._cwd, self._shown = cwd, wish.directory
        launch = self._launch(cmd, cwd, {**environment.env, **kwargs["env"]})
        self._check_is_wanted()
        try:
            await runtime().run(self._open(wish, launch))
        except BaseException:
            # The caller may have been cancelled when the kernel was there already.
            await asyncio.shield(runtime().run(self._abandon()))
            raise

    def _check_is_wanted(self) -> None:
        """See that a dead kernel which the server would start again by itself does not boot a VM that was stopped.

        :raises InstanceError: when it would; a person who restarts the kernel is not meant.
        """
        directory = paths.lima_home() / self.instance
        if self._last is _Last.DIED and not self._is_asked_for and ending.is_to_stay_down(directory):
            raise InstanceError(
                f"The VM {self.instance!r} was stopped, and its kernel is not started again by itself: "
                f"{ending.how_it_ended(directory)}.",
                hint="Restart the kernel: that boots the VM.",
            )

    def _launch(self, arguments: list[str], cwd: Path, env: dict[str, str]) -> Launch:
        manager: Any = self.parent
        curve = self._curve_keys()
        return Launch(
            kernel_id=self.kernel_id,
            cwd=cwd if self.mount else Path("~"),
            env=env,
            arguments=arguments,
            guest_spec=self.kernel,
            transport=Transport(self.transport),
            key=manager.session.key.decode(),
            signature_scheme=manager.session.signature_scheme,
            kernel_name=manager.kernel_name,
            curve=curve,
            facts=KernelFacts(session=self._notebook, spec=manager.kernel_name, encrypted=bool(curve)),
            keep=self.orphan_timeout,
            timeout=self.kernel_timeout,
            notes=[self._obituary] if self._obituary else [],
            control=None if self.control == Policy.OFF.value else self._control,
        )

    def _control(self, kernel: str, key: bytes) -> Answer:
        return Control(Policy(self.control), self.instance, kernel, key, runtime().vm).answer

    async def _directory(self, cwd: Path, environment: spec.Environment) -> Path:
        """The directory to show; a drive that does not answer holds up nobody else."""
        looking = asyncio.to_thread(directory_to_share, cwd, self._server_root(), environment.mounts)
        return await runtime().run(looking)

    def _server_root(self) -> Path | None:
        """The root of the Jupyter server whose kernel manager's manager we are below; None outside a server."""
        root = getattr(getattr(self.parent, "parent", None), "root_dir", None)
        return Path(root) if isinstance(root, str) and root else None

    async def _open(self, wish: Wish, launch: Launch) -> None:
        self._opening = asyncio.current_task()
        self._session = await open_session(runtime().vm(self.instance), wish, launch)

    async def _abandon(self) -> None:
        if self._opening is not None:
            await asyncio.wait([self._opening])
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _curve_keys(self) -> dict[str, str]:
        """The manager's CurveZMQ keys where it wants encryption: made here, used by kernel and clients, end to end."""
        manager: Any = self.parent
        policy = getattr(manager, "transport_encryption", "disabled")
        supported = policy == "required" or (policy == "auto" and manager._kernel_supports_curve_encryption())
        if policy == "disabled" or not supported:
            return {}
        if manager.curve_publickey is None:
            manager.curve_publickey, manager.curve_secretkey = zmq.curve_keypair()
        return {
            "curve_publickey": manager.curve_publickey.decode(),
            "curve_secretkey": manager.curve_secretkey.decode(),
        }

    def _connection_info(self) -> KernelConnectionInfo:
        """The connection file's content as the manager compares it: the key is bytes, the curve keys are text."""
        assert self._session is not None
        address = self._session.address
        assert address is not None
        info: dict[str, Any] = {
            **self._session.connection,
            "transport": address.transport.value,
            "ip": address.ip,
            **address.ports,
            "key": self._session.connection["key"].encode(),
        }
        self.connection_info = cast(KernelConnectionInfo, info)
        return self.connection_info

    # Ending. Nothing in the manager puts a limit on these, and an interrupt that raises would stop its shutdown.

    async def send_signal(self, signum: int) -> None:
        if self._session is not None:
            try:
                await runtime().run(self._session.signal(signum))
            except (LimaKernelsError, TimeoutError) as error:
                self.log.warning("Signal %d did not reach the kernel: %s", signum, error)

    async def shutdown_requested(self, restart: bool = False) -> None:
        # A person's restart comes this way; that of a kernel which died does not.
        self._is_asked_for = True

    async def kill(self, restart: bool = False) -> None:
        await self.send_signal(9)

    async def terminate(self, restart: bool = False) -> None:
        await self.send_signal(15)

    async def cleanup(self, restart: bool = False) -> None:
        await self._close()
        if not restart:
            self._last = _Last.ENDED

    async def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._obituary = session.obituary()
            self._last = _Last.ENDED if session.exit is None else _Last.DIED
            await asyncio.shield(runtime().run(session.close()))

    def resolve_path(self, path: str) -> str | None:
        """Return a kernel's path as one of this host, where both see the same file; None for all others."""
        if self._cwd is None or self._shown is None or path.startswith("~"):
            return None
        resolved = Path(os.path.abspath(self._cwd / path))
        return resolved.as_posix() if resolved.is_relative_to(self._shown) and resolved.exists() else None

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        return max(recommended, SHUTDOWN_WAIT)

    async def get_provisioner_info(self) -> dict[str, Any]:
        info = await super().get_provisioner_info()
        # The base class leaves the key as bytes, which is no JSON.
        connection = {**info["connection_info"]}
        if isinstance(key := connection.get("key"), bytes):
            connection["key"] = key.decode()
        return {**info, "connection_info": connection, "instance": self.instance}
