"""What of a PEP 751 document is for a guest."""

from __future__ import annotations

from typing import Any

import pytest

from lima_kernels.errors import ConfigurationError
from lima_kernels.reproduce import pylock

PYTHON = "3.11.2"
X86, ARM = pylock.ARCHITECTURES
SDIST = {"url": "https://example.invalid/a-1.0.tar.gz", "hashes": {"sha256": "0" * 64}, "size": 7}


def wheel(tags: str, size: int = 1) -> dict[str, Any]:
    name = f"a-1.0-{tags}.whl"
    return {"url": f"https://example.invalid/{name}", "hashes": {"sha256": "0" * 64}, "size": size}


def package(*tags: str, **more: Any) -> dict[str, Any]:
    made = {"name": "a", "version": "1.0", **more}
    return {**made, "wheels": [wheel(one) for one in tags]} if tags else made


def document(*packages: dict[str, Any]) -> dict[str, Any]:
    return {"lock-version": "1.0", "created-by": "a test", "requires-python": ">=3.9", "packages": list(packages)}


def kept(*tags: str, **more: Any) -> list[str]:
    """Return the tags of the wheels that are left of a package that can be built in any case."""
    (left,) = pylock.trimmed(document(package(*tags, sdist=SDIST, **more)), PYTHON)["packages"]
    return [
        entry["url"].removeprefix("https://example.invalid/a-1.0-").removesuffix(".whl") for entry in left["wheels"]
    ]


@pytest.mark.parametrize(
    "tags",
    [
        "py3-none-any",
        "py2.py3-none-any",
        "py311-none-any",
        "py37-none-any",
        "cp311-none-any",
        "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64",
        "cp311-cp311-manylinux1_x86_64",
        "cp311-cp311-manylinux2010_x86_64",
        "cp311-cp311-linux_aarch64",
        "cp39-abi3-manylinux_2_28_aarch64",
        "cp311-abi3-manylinux_2_28_aarch64",
        "cp38.cp311-abi3-manylinux_2_28_aarch64",
        "py3-none-manylinux_2_17_aarch64",
        "1-cp311-cp311-manylinux_2_17_x86_64",
    ],
)
def test_a_wheel_that_a_guest_can_use_stays(tags: str) -> None:
    assert kept(tags, "cp311-cp311-win_amd64") == [tags]


@pytest.mark.parametrize(
    "tags",
    [
        "py2-none-any",
        "py312-none-any",
        "cp310-cp310-manylinux_2_17_x86_64",
        "cp312-cp312-manylinux_2_17_x86_64",
        "cp312-abi3-manylinux_2_17_x86_64",
        "cp310-none-any",
        "cp311-cp311t-manylinux_2_17_x86_64",
        "pp311-pypy311_pp73-manylinux_2_17_x86_64",
        "cp311-cp311-musllinux_1_2_x86_64",
        "cp311-cp311-macosx_11_0_arm64",
        "cp311-cp311-win_amd64",
        "cp311-cp311-manylinux_2_17_i686",
        "cp311-cp311-manylinux_2_17_ppc64le",
    ],
)
def test_a_wheel_that_no_guest_can_use_goes(tags: str) -> None:
    assert kept("py3-none-any", tags) == ["py3-none-any"]


def test_a_wheels_name_may_be_given_or_quoted_and_what_is_none_is_left_to_uv() -> None:
    named = {**wheel("x"), "name": "a-1.0-cp311-cp311-win_amd64.whl"}
    odd = {**wheel("x"), "url": "https://example.invalid/files/what%20is%20this?x=1"}
    quoted = {**wheel("x"), "url": "https://example.invalid/a-1.0%2Bcpu-py3-none-any.whl#egg=a"}
    made = document({"name": "a", "version": "1.0", "wheels": [named, odd, quoted]})
    assert pylock.trimmed(made, PYTHON)["packages"][0]["wheels"] == [odd, quoted]


def test_a_source_is_needless_where_both_architectures_have_a_wheel() -> None:
    def has_source(*tags: str) -> bool:
        return "sdist" in pylock.trimmed(document(package(*tags, sdist=SDIST)), PYTHON)["packages"][0]

    both = [f"cp311-cp311-manylinux_2_17_{arch}" for arch in (X86, ARM)]
    assert not has_source("py3-none-any")
    assert not has_source(*both)
    assert has_source(both[0])
    assert has_source("cp311-cp311-win_amd64")
    assert "wheels" not in pylock.trimmed(document(package(sdist=SDIST)), PYTHON)["packages"][0]


def test_a_package_without_any_build_is_named_when_it_is_locked() -> None:
    with pytest.raises(ConfigurationError) as caught:
        pylock.trimmed(document(package("cp311-cp311-win_amd64")), PYTHON)
    assert caught.value.message == "The Python package a 1.0 has no build for Linux and CPython 3.11."


@pytest.mark.parametrize(
    ("marker", "where"),
    [
        ("", [X86, ARM]),
        ("sys_platform == 'linux'", [X86, ARM]),
        ("sys_platform == 'win32'", []),
        ("platform_system == 'Darwin' or os_name == 'nt'", []),
        ("platform_machine == 'aarch64'", [ARM]),
        ("python_version >= '3.11' and implementation_name == 'cpython'", [X86, ARM]),
        ("python_full_version < '3.11.2'", []),
        ("platform_python_implementation == 'PyPy'", []),
        ("platform_release >= '6.0'", []),
        ("'science' in extras", []),
        ("'test' in dependency_groups", []),
    ],
)
def test_markers_are_a_guests(marker: str, where: list[str]) -> None:
    one = package("py3-none-any", marker=marker) if marker else package("py3-none-any")
    assert [arch for arch in pylock.ARCHITECTURES if pylock.is_wanted(one, PYTHON, arch)] == where
    assert len(pylock.trimmed(document(one), PYTHON)["packages"]) == bool(where)
    assert [len(list(pylock.wanted(document(one), PYTHON, arch))) for arch in pylock.ARCHITECTURES] == [
        int(arch in where) for arch in pylock.ARCHITECTURES
    ]


@pytest.mark.parametrize("marker", ["linux", "extra == 'x'", "python_version ~= 'x'", "os_name = 'posix'"])
def test_a_marker_that_is_none_names_its_package(marker: str) -> None:
    with pytest.raises(ConfigurationError, match="The lock's package 'a' has a marker that is none in a guest"):
        pylock.is_wanted(package("py3-none-any", marker=marker), PYTHON, X86)


def test_what_is_left_is_the_same_in_whatever_order_it_came() -> None:
    packages = [{**package("py3-none-any", "cp311-cp311-win_amd64"), "name": name} for name in ("b", "a", "c")]
    here = pylock.trimmed(document(*packages), PYTHON)
    assert here == pylock.trimmed(document(*reversed(packages)), PYTHON)
    assert pylock.trimmed(here, PYTHON) == here
    assert here["environments"] == [
        f"sys_platform == 'linux' and platform_machine == '{arch}'" for arch in pylock.ARCHITECTURES
    ]
    assert (here["requires-python"], "tool" in here) == (">=3.9", False)


def test_the_space_that_is_needed_is_that_of_the_largest_wheels_unpacked() -> None:
    large, small = f"cp311-cp311-manylinux_2_17_{X86}", "py3-none-any"
    two = {"name": "a", "version": "1.0", "wheels": [wheel(large, 100), wheel(small, 10)], "sdist": SDIST}
    elsewhere = {**package("py3-none-any", marker="sys_platform == 'win32'"), "name": "b"}
    source = {"name": "c", "version": "1.0", "sdist": SDIST}
    unknown = {"name": "d", "version": "1.0", "wheels": [{"url": "https://example.invalid/d-1-py3-none-any.whl"}]}
    made = document(two, elsewhere, source, unknown)
    assert pylock.needed_space(made, PYTHON, X86) == 4 * (100 + 7)
    assert pylock.needed_space(made, PYTHON, ARM) == 4 * (10 + 7)
