"""limactl's verbs, typed; the one place that knows its command line (Lima 2)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from ..errors import HostError, InstanceError, LimactlError, nearest
from . import accelerator, process
from .models import Instance, decode_instances, decode_log_line

MINIMUM_VERSION = (2, 0, 0)
INSTALL_HINT = "Install Lima: brew install lima, or a release archive from https://lima-vm.io/docs/installation/"
# Seconds that a verb which only reads or writes files may take.
SHORT = 60.0
# `--format=json` fails beyond 64 KiB (a bufio.Scanner's line) and leaves the reasons of a broken instance out.
_LIST_FORMAT = "--format={{json .}}{{range .Errors}}\t{{json .Error}}{{end}}"
# Seconds for `create`, which may download an image.
CREATE = 3600.0
# Seconds for `stop`: Lima itself gives the host agent and then the VM three minutes each.
STOP = 400.0
# What `list` says, with exit code 1, when there is no instance of a name.
_UNMATCHED = "unmatched instances"
_LOCATION = re.compile(r"\w[\w./:@+-]*")


def find_limactl() -> Path:
    """Return limactl's path.

    :raises HostError: when it is not on PATH, or when we are root, as whom limactl does nothing.
    """
    if os.geteuid() == 0:
        raise HostError("limactl refuses to run as root.", hint="Start Jupyter and lima-kernels as an ordinary user.")
    found = shutil.which("limactl")
    if found is None:
        raise HostError("limactl was not found on PATH.", hint=INSTALL_HINT)
    return Path(found)


def parse_version(text: str) -> tuple[int, ...]:
    """Return the version in ``limactl version 2.2.0``.

    :raises LimactlError: when there is none.
    """
    found = re.search(r"version v?(\d+)\.(\d+)(?:\.(\d+))?", text)
    if not found:
        raise LimactlError(f"limactl --version printed no version but {text.strip()!r}.", hint=INSTALL_HINT)
    return tuple(int(part or 0) for part in found.groups())


class Limactl:
    """limactl on this host.

    :param path: the program; found on PATH when not given.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or find_limactl()
        self._env = {**os.environ, **accelerator.limactl_environment(accelerator.detect())}

    def _argv(self, *arguments: str) -> list[str]:
        return [str(self.path), "--tty=false", "--log-format=json", *arguments]

    async def _run(
        self, *arguments: str, stdin: str = "", timeout: float = SHORT, check: bool = True
    ) -> process.Completed:
        argv = self._argv(*arguments)
        try:
            done = await process.run(argv, env=self._env, stdin=stdin, timeout=timeout)
        except TimeoutError as error:
            raise LimactlError(
                f"limactl {' '.join(arguments)} did not end within {timeout:.0f} s.",
                hint="Look at it by hand: limactl list",
            ) from error
        except OSError as error:
            raise HostError(f"{self.path} cannot be run: {error.strerror}.", hint=INSTALL_HINT) from error
        if check and done.returncode:
            raise self._failure(arguments, done.returncode, done.stderr.splitlines())
        return done

    @staticmethod
    def _failure(arguments: Sequence[str], code: int, log: Sequence[str]) -> LimactlError:
        lines = [decode_log_line(line) for line in log if line.strip()]
        fatal = [line.msg for line in lines if line.level in ("fatal", "error")]
        said = fatal[-1] if fatal else (lines[-1].msg if lines else "nothing")
        return LimactlError(
            f"limactl {' '.join(arguments)} failed with exit code {code}: {said}",
            context=[line.msg for line in lines[-20:]],
        )

    async def version(self) -> tuple[int, ...]:
        """Return limactl's version.

        :raises HostError: when it is older than what we need.
        """
        found = parse_version((await self._run("--version")).stdout)
        if found < MINIMUM_VERSION:
            raise HostError(
                f"limactl {'.'.join(map(str, found))} is too old: {'.'.join(map(str, MINIMUM_VERSION))} is needed.",
                hint=INSTALL_HINT,
            )
        return found

    async def list(self) -> tuple[Instance, ...]:
        """Return all instances; a broken one is among them, with its reasons."""
        return self._decoded((await self._run("list", _LIST_FORMAT)).stdout)

    async def find(self, name: str) -> Instance | None:
        """Return the instance of that name, or None when there is none."""
        done = await self._run("list", _LIST_FORMAT, name, check=False)
        found = self._decoded(done.stdout)
        if not found and done.returncode and _UNMATCHED not in done.stderr:
            # Something else than a name that nobody has: an instance that cannot be seen now is not gone.
            raise self._failure(("list", name), done.returncode, done.stderr.splitlines())
        return next((instance for instance in found if instance.name == name), None)

    @staticmethod
    def _decoded(text: str) -> tuple[Instance, ...]:
        try:
            return decode_instances(text)
        except msgspec.DecodeError as error:
            raise LimactlError(
                f"limactl list printed what is no list of instances: {error}.",
                hint="Look at it by hand: limactl list --format json",
                context=text.splitlines()[:5],
            ) from error

    async def get(self, name: str) -> Instance:
        """Return the instance of that name.

        :raises InstanceError: when there is none; names the nearest that exists.
        """
        found = await self.find(name)
        if found is None:
            names = [instance.name for instance in await self.list()]
            raise InstanceError(f"There is no Lima instance {name!r}.", hint=nearest(name, names))
        return found

    async def template(self, name: str) -> str:
        """Return one of Lima's templates as YAML, with everything it is based on put in.

        :raises InstanceError: when Lima has no such template.
        """
        if not _LOCATION.fullmatch(name):
            raise InstanceError(f"{name!r} is not the name of a Lima template.", hint="limactl create --list-templates")
        done = await self._run("template", "copy", "--embed-all", f"template:{name}", "-", check=False)
        if done.returncode:
            names = (await self._run("create", "--list-templates")).stdout.split()
            if name in names:
                raise self._failure(("template", "copy", name), done.returncode, done.stderr.splitlines())
            hint = nearest(name, names) or "See them: limactl create --list-templates"
            raise InstanceError(f"There is neither a guest image nor a Lima template {name!r}.", hint=hint)
        return done.stdout

    async def create(self, name: str, config: str, *, timeout: float = CREATE) -> None:
        """Create an instance from a lima.yaml's text; downloads its image where it has none yet."""
        await self._run("create", f"--name={name}", "-", stdin=config, timeout=timeout)

    @contextlib.asynccontextmanager
    async def start(self, name: str, *, timeout: float) -> AsyncIterator[process.Stream]:
        """Start an instance and hand out limactl's log as it comes; it ends when the instance is ready or failed."""
        argv = self._argv("start", f"--timeout={timeout:.0f}s", name)
        async with process.stream(argv, env=self._env) as running:
            yield running

    async def replace_config(self, instance: Instance, config: str) -> None:
        """Give a stopped instance another lima.yaml, once Lima has found nothing wrong with it."""
        with tempfile.TemporaryDirectory(dir=instance.dir) as work:
            # Lima takes the file's name for an instance's, and refuses what cannot be one.
            incoming = Path(work) / "lima.yaml"
            incoming.touch(mode=0o600)
            incoming.write_text(config, encoding="utf-8")
            await self._run("template", "validate", str(incoming))
            incoming.replace(instance.dir / "lima.yaml")

    async def stop(self, name: str) -> None:
        """Shut an instance down as its power button would."""
        await self._run("stop", name, timeout=STOP)

    async def stop_forcibly(self, name: str) -> None:
        """End an instance's processes; what its guest had not written to disk is lost."""
        await self._run("stop", "--force", name)

    async def delete(self, name: str) -> None:
        """Remove an instance and its disk."""
        await self._run("delete", "--force", name)
