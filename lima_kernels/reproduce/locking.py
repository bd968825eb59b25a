"""Resolve an environment in a guest of its own kind, into a lock."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from ..environment.lock import LOCK_VERSION, Deb, Lock, Platform, inputs_digest, pylock_text
from ..environment.provision import BASE_REQUIREMENTS
from ..environment.requirements import check_pylock
from ..environment.spec import Environment
from ..errors import ConfigurationError, GuestError
from ..guest import layers
from ..lima.models import Instance
from ..progress import Phase
from ..vm import VM, Guest
from . import pylock, syncing

# pip is in it, for `%pip` in a cell.
REQUIREMENTS = (*BASE_REQUIREMENTS, "pip")
# Seconds: lists are fetched, and packages whose metadata is in no index.
RESOLVE_TIMEOUT = 900.0


class _Resolved(msgspec.Struct, frozen=True):
    arch: str
    kernel: str
    python: Annotated[str, msgspec.Meta(max_length=40, pattern=r"\A3\.[0-9]{1,3}(\.[0-9a-z+.]*)?\Z")]
    apt: dict[str, str]
    debs: dict[str, Deb]
    pylock: str


class _Exported(msgspec.Struct, frozen=True):
    pylock: str


class Wanted(NamedTuple):
    """What is to be locked: an environment by its name, and its earlier lock where there is one."""

    environment: Environment
    name: str
    before: Lock | None


class _Asked(NamedTuple):
    """What of it is chosen anew, and from what: requirements, or files that have resolved them by uv's names."""

    upgrade: Sequence[str] | None
    requirements: Iterable[str]
    texts: Mapping[str, str]


async def lock(vm: VM, guest: Guest, wanted: Wanted, upgrade: Sequence[str] | None) -> Lock:
    """Return the lock of an environment, for the guest's architecture; to be awaited in the I/O thread.

    What an earlier lock has for other architectures stays while what was asked for is the same.

    :param upgrade: packages whose versions are chosen anew; all when empty, those of the earlier lock stay when None.
    :raises GuestError: when something cannot be had, or does not go together; in the resolver's own words.
    """
    requirements = (*REQUIREMENTS, *wanted.environment.requirements)
    return await _locked(vm, guest, wanted, _Asked(upgrade, requirements, wanted.environment.python_texts))


async def lock_from_guest(vm: VM, guest: Guest, wanted: Wanted) -> Lock:
    """Return the lock of what an environment in a guest has become; to be awaited in the I/O thread.

    :raises ConfigurationError: when the guest has no such environment.
    """
    live = vm.live()
    assert live is not None
    state = await syncing.state(vm, guest, wanted.name)
    if not state.packages:
        raise ConfigurationError(
            f"The VM {vm.name!r} has no environment {wanted.name!r} to lock.",
            hint="Make it first: lima-kernels env sync",
        )
    pins = [f"{package}=={installed.version}" for package, installed in state.packages.items()]
    # What its files say is what it was made from, not what it has become.
    found = await _locked(vm, guest, wanted, _Asked(None, pins, {}))
    platform = msgspec.structs.replace(found.platforms[live.instance.arch], apt=state.apt)
    return msgspec.structs.replace(found, platforms={**found.platforms, live.instance.arch: platform})


async def _locked(vm: VM, guest: Guest, wanted: Wanted, asked: _Asked) -> Lock:
    environment, name, before = wanted
    live = vm.live()
    assert live is not None
    vm.progress.enter(Phase.ENVIRONMENT, "locking")
    known = syncing.hosted(vm.name)
    earlier = before.platforms.get(live.instance.arch) if before else None
    request = {
        "op": "resolve",
        "apt": list(environment.apt),
        "base": known.base,
        "kept": _kept(earlier.apt, asked.upgrade) if earlier else {},
        "requirements": "\n".join((*asked.requirements, "")),
        "pylock": pylock_text(before) if before else "",
        "upgrade": asked.upgrade,
    }
    resolved = await _ask(vm, guest, request, _Resolved)
    _check(environment, live.instance, resolved)
    if not known.base and not known.environments:
        # Nobody has changed it yet.
        base = {package: version for package, version in resolved.apt.items() if package not in resolved.debs}
        syncing.note(vm.name, msgspec.structs.replace(known, base=base))
    document = await _document(vm, guest, asked.texts, resolved.pylock)
    inputs = inputs_digest(environment)
    # What is chosen anew altogether is no longer what the others were locked with.
    kept = before.platforms if before and before.inputs == inputs and asked.upgrade != [] else {}
    return Lock(
        version=LOCK_VERSION,
        name=name,
        inputs=inputs,
        platforms={**kept, resolved.arch: _platform(environment, live.instance, resolved)},
        pylock=pylock.trimmed(document, resolved.python),
    )


def _kept(versions: Mapping[str, str], upgrade: Sequence[str] | None) -> dict[str, str]:
    """Return the versions of an earlier lock that are to stay."""
    if upgrade == []:
        return {}
    return {name: version for name, version in versions.items() if name.partition(":")[0] not in (upgrade or ())}


async def _ask(vm: VM, guest: Guest, request: dict[str, Any], answer: type[Any]) -> Any:
    def tell(step: str) -> None:
        vm.progress.enter(Phase.ENVIRONMENT, step)

    return await layers.ask(guest.connection, guest.facts, request, answer, timeout=RESOLVE_TIMEOUT, tell=tell)


def _platform(environment: Environment, instance: Instance, resolved: _Resolved) -> Platform:
    image = environment.image if isinstance(environment.image, str) else ""
    return Platform(
        image=image,
        image_sha256=syncing.image_of(instance),
        kernel=resolved.kernel,
        python=resolved.python,
        apt=resolved.apt,
        debs=resolved.debs,
    )


async def _document(vm: VM, guest: Guest, texts: Mapping[str, str], resolved: str) -> dict[str, Any]:
    """Return the PEP 751 document: what was resolved, or what the environment's files have resolved already.

    :param texts: those files, by the names that uv knows them by.
    """
    text = texts.get("pylock.toml", "")
    if "uv.lock" in texts:
        request = {"op": "export", "pyproject": texts["pyproject.toml"], "uv_lock": texts["uv.lock"]}
        text = (await _ask(vm, guest, request, _Exported)).pylock
    try:
        document = tomllib.loads(text or resolved)
    except (ValueError, RecursionError) as error:
        raise GuestError("What was resolved is no TOML.") from error
    check_pylock("What was resolved", document)
    if text and not any(package.get("name") == "ipykernel" for package in document.get("packages", ())):
        raise ConfigurationError(
            "The environment's lock of its Python packages has no ipykernel, so no kernel could run in it.",
            hint="Add it, by uv add ipykernel for example.",
        )
    return document


def _check(environment: Environment, instance: Instance, resolved: _Resolved) -> None:
    if resolved.arch != instance.arch:
        raise GuestError(f"The guest says that it is another machine than Lima does, which is {instance.arch}.")
    wanted, found = environment.python_version, resolved.python
    if wanted and not f"{found}.".startswith(f"{wanted}."):
        raise ConfigurationError(
            f"The environment wants Python {wanted}, and its image has Python {found}.",
            hint="Choose an image that has it: an environment takes the Python of its image.",
        )
