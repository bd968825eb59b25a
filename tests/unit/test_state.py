"""What a guest tells of its environment, and how that differs from a lock."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from lima_kernels.errors import GuestError
from lima_kernels.reproduce.difference import Difference, differences, table
from lima_kernels.reproduce.state import LIMIT, GuestState, Package, decoded

from .locks import APT, IMAGE, KERNEL, OTHER, PYTHON, RECORD, lock, locked, state

TOLD: dict[str, Any] = {
    "arch": "x86_64",
    "kernel": KERNEL,
    "python": PYTHON,
    "apt": APT,
    "packages": {"numpy": ["2.1.0", RECORD]},
    "built": {"numpy": ["2.1.0", RECORD]},
    "python_digest": OTHER,
}


def told(**changed: Any) -> bytes:
    return json.dumps({**TOLD, **changed}).encode()


def test_what_a_guest_tells() -> None:
    found = decoded(told(), IMAGE)
    assert found.packages == {"numpy": Package("2.1.0", RECORD)}
    assert (found.arch, found.apt, found.image_sha256) == ("x86_64", APT, IMAGE)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "Input data was truncated"),
        (b"\xff", "JSON is malformed"),
        (b'{"arch": "\xff"}', ""),
        (b"[" * 100_000, ""),
        (b'{"x":' + b"[" * 100_000, ""),
        (b"[]", "Expected `object`, got `array`"),
        (told(extra=1), "unknown field `extra`"),
        (told(image_sha256=7), "image_sha256"),
        (told(kernel="6.1\x1b[2J"), "kernel"),
        (told(kernel="6.1\n"), "kernel"),
        (told(python="3" * 201), "python"),
        (told(apt={"bash\x1b[2J": "1"}), "apt"),
        (told(apt={"../bash": "1"}), "apt"),
        (told(apt={"bash": "1 or 2"}), "apt"),
        (told(apt={"bash": None}), "apt"),
        (told(apt={f"p{number}": "1" for number in range(20_001)}), "apt"),
        (told(packages={"NumPy": ["2", RECORD]}), "packages"),
        (told(packages={"numpy": ["2", "no digest"]}), "packages"),
        (told(packages={"numpy": ["2", RECORD + "\n"]}), "packages"),
        (told(packages={"numpy": ["2"]}), "packages"),
        (told(packages={"numpy": ["2", RECORD, "more"]}), "length 2"),
        (told(**{"\x1b[2J\nextra": 1}), "extra"),
        (told(**{"x" * 10_000: 1}), "xxx"),
    ],
)
def test_what_a_guest_may_not_tell(data: bytes, what: str) -> None:
    with pytest.raises(GuestError) as caught:
        decoded(data, IMAGE)
    assert caught.value.message.startswith("What the guest told of its environment cannot be used: ")
    assert what in caught.value.message
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "\x1b" not in str(caught.value)


def test_a_guest_that_tells_too_much() -> None:
    with pytest.raises(GuestError, match=r"more than 8 MiB came\.$"):
        decoded(b" " * (LIMIT + 1), IMAGE)


def test_the_image_is_not_the_guests_word() -> None:
    assert decoded(told(image_sha256=OTHER), IMAGE).image_sha256 == IMAGE


def test_the_digest_is_of_what_is_there_and_not_of_how_it_came_there() -> None:
    there = state(lock())
    assert state(lock(), apt=dict(reversed(APT.items()))).digest == there.digest
    assert state(lock(), built={}, python_digest="").digest == there.digest
    others: list[GuestState] = [
        state(lock(), kernel="6.1.0-29-amd64"),
        state(lock(), python="3.11.3"),
        state(lock(), arch="aarch64"),
        state(lock(), image_sha256=OTHER),
        state(lock(), apt={**APT, "bash": "5.2.15-3"}),
        state(lock(), packages={**there.packages, "numpy": Package("2.1.0", OTHER)}),
    ]
    assert len({there.digest, *(other.digest for other in others)}) == 7


def test_a_guest_that_is_what_the_lock_says() -> None:
    assert differences(lock(), state(lock())) == []


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"image_sha256": OTHER}, ("image", IMAGE[:12], OTHER[:12])),
        ({"image_sha256": ""}, ("image", IMAGE[:12], "unknown")),
        ({"kernel": "6.1.0-29-amd64"}, ("kernel", KERNEL, "6.1.0-29-amd64")),
        ({"python": "3.11.3"}, ("Python", PYTHON, "3.11.3")),
        ({"apt": {**APT, "bash": "5.3"}}, ("apt bash", "5.2.15-2+b7", "5.3")),
        ({"apt": {**APT, "zsh": "5.9"}}, ("apt zsh", "", "5.9")),
        (
            {"apt": {name: version for name, version in APT.items() if ":" not in name}},
            ("apt libc6:i386", APT["libc6"], ""),
        ),
        ({"python_digest": OTHER}, ("lock of Python packages", lock().python_digest("x86_64")[:12], OTHER[:12])),
        ({"python_digest": ""}, ("lock of Python packages", lock().python_digest("x86_64")[:12], "")),
    ],
)
def test_one_thing_that_differs(changed: dict[str, Any], difference: tuple[str, str, str]) -> None:
    assert differences(lock(), state(lock(), **changed)) == [Difference(*difference)]


def test_another_architecture_is_said_alone() -> None:
    found = differences(lock(), state(lock(), arch="aarch64", apt={}))
    assert found == [Difference("architecture", "x86_64", "aarch64")]


def test_an_image_without_a_digest_is_not_compared() -> None:
    unpinned = lock(image_sha256="")
    assert differences(unpinned, state(unpinned, image_sha256=IMAGE)) == []


def test_python_packages_that_differ() -> None:
    there = {
        "ipython": Package("9.1.0", OTHER),
        "pip": Package("24.0", RECORD),
    }
    assert differences(lock(), state(lock(), packages=there)) == [
        Difference("python ipython", "9.1.0, as built", f"9.1.0, other files ({OTHER[:12]})"),
        Difference("python numpy", "2.1.0", ""),
        Difference("python pip", "", "24.0"),
    ]


def test_an_environment_that_was_not_made_is_one_line() -> None:
    found = differences(lock(), state(lock(), python="", packages={}, built={}, python_digest=""))
    assert found == [Difference("Python", PYTHON, ""), Difference("Python packages", "2", "")]


def test_packages_of_other_platforms_are_not_missed() -> None:
    elsewhere = locked("colorama", "0.4", marker="sys_platform == 'win32'")
    on_arm = locked("neon", "1.0", marker="platform_machine == 'aarch64'")
    here = locked("numpy", "2.1.0", marker="python_full_version < '3.12' and platform_machine == 'x86_64'")
    wanted = lock(here, elsewhere, on_arm)
    assert differences(wanted, state(wanted, packages={"numpy": Package("2.1.0", RECORD)})) == []


def test_versions_are_compared_as_versions_and_names_as_names() -> None:
    wanted = lock(locked("Zope.Interface", "1.0"))
    there = {"zope-interface": Package("1.0.0", RECORD)}
    assert differences(wanted, state(wanted, packages=there, built=there)) == []


def test_a_package_without_a_version_must_only_be_there() -> None:
    directory = {"name": "mine", "directory": {"path": "."}}
    wanted = lock(directory)
    there = {"mine": Package("0.1", RECORD)}
    assert differences(wanted, state(lock(), packages=there, built=there, **digest(wanted))) == []
    assert differences(wanted, state(lock(), packages={}, **digest(wanted))) == [
        Difference("python mine", "any version", "")
    ]


def digest(of: Any) -> dict[str, str]:
    return {"python_digest": of.python_digest("x86_64")}


def test_the_table_shows_no_markup_and_no_control_characters() -> None:
    console = Console(width=100, record=True, color_system=None)
    with console.capture() as shown:
        console.print(table([Difference("apt bash", "[red]1[/red]", "\x1b[2J2"), Difference("apt zsh", "", "5.9")]))
    text = shown.get()
    assert "[red]1[/red]" in text
    assert "\x1b" not in text
    assert [cell.strip() for cell in text.splitlines()[-2].strip("│").split("│")] == ["apt zsh", "-", "5.9"]
