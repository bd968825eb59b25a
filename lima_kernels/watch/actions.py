"""What a client may ask of a VM; each is a verb of `%lima`, and its arguments those that a cell would give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from ..errors import ConfigurationError, nearest
from ..lima.limactl import check_name


class Call(NamedTuple):
    """A verb, and its arguments as a cell gives them."""

    verb: str
    arguments: Sequence[str]


Cpus = Annotated[int, msgspec.Meta(ge=1, le=4096)]
# Such as 4GiB; the verb says what is wrong with it.
Size = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class _Action(msgspec.Struct, frozen=True, rename="camel", tag_field="verb", forbid_unknown_fields=True, kw_only=True):
    def options(self) -> Iterator[str]:
        """Give the arguments beside the VM's name."""
        # With `=`, so that no value can be taken for an option.
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name == "name" or value is None or value is False:
                continue
            yield f"--{name}" if value is True else f"--{name}={value}"

    def call(self, vm: str) -> Call:
        """Return the verb for a VM.

        :raises ConfigurationError: when that cannot be a VM's name.
        """
        check_name(vm)
        return Call(str(type(self).__struct_config__.tag), (vm, *self.options()))


class Start(_Action, frozen=True, tag="start"):
    """Start it, and wait until it can be used."""


class Stop(_Action, frozen=True, tag="stop"):
    """Shut it down; forced also while it is in use."""

    force: bool = False


class Hibernate(_Action, frozen=True, tag="hibernate"):
    """Save its memory and end it; forced also while cells run."""

    force: bool = False


class Restart(_Action, frozen=True, tag="restart"):
    """Stop it and start it again."""

    force: bool = False


class Delete(_Action, frozen=True, tag="delete"):
    """Delete it with its disk."""

    force: bool = False


class Edit(_Action, frozen=True, tag="edit"):
    """Change what it has while it is stopped."""

    cpus: Cpus | None = None
    memory: Size | None = None
    disk: Size | None = None


class Create(_Action, frozen=True, tag="create"):
    """Make it from one of Lima's templates, or from an environment file of this host."""

    name: _Name
    template: _Name | None = None
    environment: _Name | None = None
    cpus: Cpus | None = None
    memory: Size | None = None
    disk: Size | None = None
    start: bool = False


Action = Start | Stop | Hibernate | Restart | Delete | Edit | Create
VERBS = tuple(str(kind.__struct_config__.tag) for kind in (Start, Stop, Hibernate, Restart, Delete, Edit, Create))


def action(verb: str, arguments: Mapping[str, Any]) -> Action:
    """Return what a client asks for.

    :raises ConfigurationError: when there is no such verb, or its arguments are not as they should be; says where.
    """
    if verb not in VERBS:
        raise ConfigurationError(f"There is no action {verb!r}.", hint=nearest(verb, VERBS))
    try:
        found: Action = msgspec.convert({**arguments, "verb": verb}, Action)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"The action {verb!r} cannot be understood: {error}.") from error
    return found
