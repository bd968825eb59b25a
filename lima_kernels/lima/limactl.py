"""limactl's verbs, typed; the one place that knows its command line (Lima 2)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from pathlib import Path

import msgspec

from .. import paths
from ..errors import ConfigurationError, HostError, InstanceError, LimactlError, NotFound, nearest
from . import accelerator, process
from .models import Instance, LimaInfo, decode_info, decode_instances, decode_log_line
from .template import Hardware, editable, kept, with_disk_of

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
_CONFIG = "lima.yaml"
# Where Lima's templates put files of the guest's.
_COPIED = "copied-from-guest"
# What `list` says, with exit code 1, when there is no instance of a name.
_UNMATCHED = "unmatched instances"
_LOCATION = re.compile(r"\w[\w./:@+-]*")
# Where it leaves a lima.yaml that it refuses; we let it do so where nobody finds it.
_REJECTED = re.compile(r"the YAML is invalid, saved the buffer as \S+: ")
# Lima's rule for names of instances and disks (lima ``pkg/identifiers`` and ``pkg/limatype/dirnames``).
_NAME = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_NAME_LENGTH = 76


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


def check_name(name: str, what: str = "Lima instance") -> None:
    """See that Lima takes a name for an instance or a disk.

    :raises ConfigurationError: when it does not.
    """
    if not _NAME.fullmatch(name) or len(name) > _NAME_LENGTH or name.lower().endswith((".yml", ".yaml")):
        raise ConfigurationError(
            f"{name!r} cannot be a {what}'s name.",
            hint=f"Use at most {_NAME_LENGTH} letters and digits, with single '.', '_' or '-' between, and no .yaml.",
        )


def is_there(name: str) -> bool:
    """Tell whether Lima has an instance of a name, be it broken; asks no process."""
    return (paths.lima_home() / name / _CONFIG).exists()


def make_accessible(instance_dir: Path) -> None:
    """Let this user into the directories of a clone, the one of its sockets for example: Lima makes them without mode.

    (lima ``pkg/instance/clone.go``: ``d.Type().Perm()`` is 0.)
    """
    for entry in instance_dir.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            entry.chmod(0o700)


@contextlib.contextmanager
def _without_copied_files(instance_dir: Path) -> Iterator[None]:
    """Take away, while the block runs, what an instance's template had copied from the guest, such as a kubeconfig.

    It lies in a directory, and Lima's clone fails at the first file of one (see above). Each start copies it anew.
    """
    copied = instance_dir / _COPIED
    if not copied.exists():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="_", dir=instance_dir.parent) as aside:
        away = copied.rename(Path(aside) / _COPIED)
        try:
            yield
        finally:
            away.rename(copied)


class Limactl:
    """limactl on this host.

    :param path: the program; found on PATH when not given.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or find_limactl()
        self._env = {**os.environ, **accelerator.limactl_environment(accelerator.detect())}

    def _argv(self, *arguments: str) -> list[str]:
        return [str(self.path), "--tty=false", "--log-format=json", *arguments]

    async def run(
        self,
        *arguments: str,
        stdin: str = "",
        timeout: float = SHORT,
        check: bool = True,
        cwd: Path | None = None,
    ) -> process.Completed:
        """Run a command of limactl's to its end; for this package.

        :param timeout: seconds.
        :raises LimactlError: when it does not end in time, or fails and that is checked.
        """
        argv = self._argv(*arguments)
        try:
            done = await process.run(argv, env=self._env, stdin=stdin, timeout=timeout, cwd=cwd)
        except TimeoutError as error:
            raise LimactlError(
                f"limactl {' '.join(arguments)} did not end within {timeout:.0f} s.",
                hint="Look at it by hand: limactl list",
            ) from error
        except OSError as error:
            raise HostError(f"{self.path} cannot be run: {error.strerror}.", hint=INSTALL_HINT) from error
        if check and done.returncode:
            raise self.failure(arguments, done.returncode, done.stderr.splitlines())
        return done

    @staticmethod
    def failure(arguments: Sequence[str], code: int, log: Sequence[str]) -> LimactlError:
        """Return what a failed command says as an error; for this package."""
        lines = [decode_log_line(line) for line in log if line.strip()]
        fatal = [line.msg for line in lines if line.level in ("fatal", "error")]
        said = _REJECTED.sub("", fatal[-1] if fatal else (lines[-1].msg if lines else "nothing")).partition("\n")[0]
        return LimactlError(
            f"limactl {' '.join(arguments)} failed with exit code {code}: {said}",
            context=[line.msg for line in lines[-20:]],
        )

    async def version(self) -> tuple[int, ...]:
        """Return limactl's version.

        :raises HostError: when it is older than what we need.
        """
        found = parse_version((await self.run("--version")).stdout)
        if found < MINIMUM_VERSION:
            raise HostError(
                f"limactl {'.'.join(map(str, found))} is too old: {'.'.join(map(str, MINIMUM_VERSION))} is needed.",
                hint=INSTALL_HINT,
            )
        return found

    async def list(self) -> tuple[Instance, ...]:
        """Return all instances; a broken one is among them, with its reasons."""
        return self._decoded((await self.run("list", _LIST_FORMAT)).stdout)

    async def find(self, name: str) -> Instance | None:
        """Return the instance of that name, or None when there is none."""
        return (await self.named([name])).get(name)

    async def named(self, names: Collection[str]) -> dict[str, Instance]:
        """Return those of these names that there are, a broken one among them; of no names none."""
        if not names:
            return {}
        done = await self.run("list", _LIST_FORMAT, *names, check=False)
        found = {instance.name: instance for instance in self._decoded(done.stdout)}
        if not found.keys() >= set(names) and done.returncode and _UNMATCHED not in done.stderr:
            # Something else than a name that nobody has: an instance that cannot be seen now is not gone.
            raise self.failure(("list", *names), done.returncode, done.stderr.splitlines())
        return {name: found[name] for name in names if name in found}

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

        :raises NotFound: when there is none; names the nearest that exists.
        """
        found = await self.find(name)
        if found is None:
            names = [instance.name for instance in await self.list()]
            raise NotFound(f"There is no Lima instance {name!r}.", hint=nearest(name, names))
        return found

    async def template(self, name: str) -> str:
        """Return one of Lima's templates as YAML, with everything it is based on put in.

        :raises InstanceError: when Lima has no such template.
        """
        if not _LOCATION.fullmatch(name):
            raise InstanceError(f"{name!r} is not the name of a Lima template.", hint="limactl create --list-templates")
        done = await self.run("template", "copy", "--embed-all", f"template:{name}", "-", check=False)
        if done.returncode:
            names = await self.templates()
            if name in names:
                raise self.failure(("template", "copy", name), done.returncode, done.stderr.splitlines())
            hint = nearest(name, names) or "See them: limactl create --list-templates"
            raise InstanceError(f"There is neither a guest image nor a Lima template {name!r}.", hint=hint)
        return done.stdout

    async def templates(self) -> Sequence[str]:
        """Return the names of all templates that Lima offers."""
        return (await self.run("create", "--list-templates")).stdout.split()

    async def info(self) -> LimaInfo:
        """Return what Lima tells of itself."""
        done = await self.run("info")
        try:
            return decode_info(done.stdout)
        except msgspec.DecodeError as error:
            raise LimactlError(f"limactl info printed what it should not: {error}.") from error

    async def create(self, name: str, config: str, *, timeout: float = CREATE) -> None:
        """Create an instance from a lima.yaml's text; downloads its image where it has none yet."""
        await self.run("create", f"--name={name}", "-", stdin=config, timeout=timeout)

    @contextlib.asynccontextmanager
    async def start(
        self, name: str, *, timeout: float, arch: str = "", options: Sequence[str] = ()
    ) -> AsyncIterator[process.Stream]:
        """Start an instance and hand out limactl's log as it comes; it ends when the instance is ready or failed.

        :param options: more of them for the QEMU of the instance's ``arch``.
        """
        argv = self._argv("start", f"--timeout={timeout:.0f}s", name)
        env = accelerator.with_options(self._env, arch, options) if options else self._env
        async with process.stream(argv, env=env) as running:
            yield running

    async def replace_config(self, instance: Instance, config: str) -> None:
        """Give a stopped instance another lima.yaml, once Lima has found nothing wrong with it.

        Its disk stays as big as it is: Lima would not start an instance whose disk should be smaller.
        """
        with tempfile.TemporaryDirectory(dir=instance.dir) as work:
            # Lima takes the file's name for an instance's, and refuses what cannot be one.
            incoming = Path(work) / "lima.yaml"
            incoming.touch(mode=0o600)
            incoming.write_text(with_disk_of(config, instance.disk), encoding="utf-8")
            await self.run("template", "validate", str(incoming))
            incoming.replace(instance.dir / _CONFIG)

    async def edit(self, instance: Instance, hardware: Hardware) -> None:
        """Change what a stopped instance has; nothing is changed when Lima refuses it or it is given up."""
        file = instance.dir / _CONFIG
        before = file.read_bytes()
        command = ("edit", f"--set={hardware.expression}", instance.name)
        with tempfile.TemporaryDirectory() as work:
            try:
                await self.run(*command, cwd=Path(work))
                text = before.decode()
                if not kept(text, file.read_text(encoding="utf-8"), hardware):
                    paths.replace_privately(file, editable(text).encode())
                    await self.run(*command, cwd=Path(work))
            except BaseException:
                if file.read_bytes() != before:
                    paths.replace_privately(file, before)
                raise

    async def factory_reset(self, name: str) -> Sequence[str]:
        """Remove all of an instance but its lima.yaml, and return what could not be removed, in limactl's words."""
        done = await self.run("factory-reset", name)
        lines = [decode_log_line(line) for line in done.stderr.splitlines()]
        return [line.msg for line in lines if line.level == "error"]

    async def clone(self, source: str, target: str) -> None:
        """Copy a stopped instance, with its disk."""
        with _without_copied_files(paths.lima_home() / source):
            await self.run("clone", source, target, timeout=CREATE)
        make_accessible(paths.lima_home() / target)

    async def stop(self, name: str) -> None:
        """Shut an instance down as its power button would."""
        await self.run("stop", name, timeout=STOP)

    async def stop_forcibly(self, name: str) -> None:
        """End an instance's processes; what its guest had not written to disk is lost."""
        await self.run("stop", "--force", name)

    async def delete(self, name: str) -> None:
        """Remove an instance and its disk."""
        await self.run("delete", "--force", name)
