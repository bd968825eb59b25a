"""What a kernel spec of ours can say, as traits."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, ClassVar

from traitlets import Bool, CaselessStrEnum, Float, HasTraits, Int, List, TraitError, Unicode

from .errors import ConfigurationError, nearest
from .guest.forwards import Transport
from .instances import BOOT_TIMEOUT, CREATE_TIMEOUT

DEFAULT_INSTANCE = "lima-kernels"


class Policy(enum.Enum):
    """What kernels may ask their host for."""

    OFF = "off"
    OWN_VM = "own-vm"
    ALL = "all"


class OnIdle(enum.Enum):
    """What a VM does that nobody uses."""

    HIBERNATE = "hibernate"
    STOP = "stop"
    NOTHING = "nothing"


class Settings(HasTraits):
    """The keys of ``metadata.kernel_provisioner.config`` in kernel.json.

    :raises ConfigurationError: when a key is none of them, or its value cannot be.
    """

    #: What else a subclass is constructed with.
    not_settings: ClassVar[Sequence[str]] = ()

    instance = Unicode(DEFAULT_INSTANCE, config=True, help="The Lima instance; made when it is missing.")
    environment = Unicode(
        "", config=True, help="The environment file that says what the VM is; a built-in default when empty."
    )
    attach = Bool(
        False, config=True, help="Use an instance that lima-kernels did not make; it is never created or changed."
    )
    transport = CaselessStrEnum(
        [member.value for member in Transport],
        default_value=Transport.IPC.value,
        config=True,
        help="What clients connect to on this host: unix sockets (ipc) or loopback ports (tcp).",
    )
    mount = Bool(True, config=True, help="Show the notebook's directory to the VM, at the same path and writable.")
    create_timeout = Float(
        CREATE_TIMEOUT, config=True, help="Seconds until a missing VM exists: its image may be downloaded."
    )
    boot_timeout = Float(BOOT_TIMEOUT, config=True, help="Seconds until the guest is ready; emulation is slow.")
    kernel = Unicode(
        "",
        config=True,
        help="A kernel that the guest itself has, by its kernel spec's name there; the guest's ipykernel when empty.",
    )
    orphan_timeout = Float(
        86400.0,
        config=True,
        help="Seconds that a kernel lives on when its Jupyter server has died; a busy kernel goes on until it is idle. "
        "The next server that opens the same notebook with the same kernel spec gets it back.",
    )
    idle_timeout = Float(
        0.0,
        config=True,
        help="Seconds after which a VM without a terminal that nobody uses does what on_idle says; 0 for never.",
    )
    on_idle = CaselessStrEnum(
        [member.value for member in OnIdle],
        default_value=OnIdle.HIBERNATE.value,
        config=True,
        help="What a VM that nobody uses does: it is saved with its kernels (hibernate) once no cell runs, and stops "
        "where that cannot be and there is no kernel; it stops when there is no kernel (stop); or nothing.",
    )
    standby_kernels = Int(
        1,
        min=0,
        max=16,
        config=True,
        help="How many kernels the VM keeps ready, so that the next start takes no time; none while its "
        "memory is short.",
    )
    kernel_timeout = Float(120.0, config=True, help="Seconds for the kernel itself once the guest is ready.")
    control = CaselessStrEnum(
        [member.value for member in Policy],
        default_value=Policy.OWN_VM.value,
        config=True,
        help="What `%lima` in a kernel may ask this host for: of its own VM only (own-vm), nothing (off), or whatever "
        "a kernel of this host may (all).",
    )
    environment_variables = List(
        Unicode(),
        default_value=["TZ", "JPY_SESSION_NAME"],
        config=True,
        help="Variables of the Jupyter server that kernels get, as names or patterns; all others stay on this host.",
    )

    def __init__(self, **kwargs: Any) -> None:
        known = self.class_trait_names(config=True)
        for name in kwargs:
            if name not in (*known, *self.not_settings):
                raise ConfigurationError(
                    f"The kernel spec's config has an unknown key {name!r}.",
                    hint=nearest(name, known) or f"Known keys: {', '.join(sorted(known))}.",
                )
        try:
            super().__init__(**kwargs)
        except TraitError as error:
            raise ConfigurationError(f"The kernel spec's config is wrong: {error}") from error
