"""Kernel specs on disk, as Jupyter itself reads them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.provisioning import KernelProvisionerFactory

from lima_kernels import kernelspec
from lima_kernels.environment import lock as locks
from lima_kernels.environment.spec import load
from lima_kernels.errors import ConfigurationError, HostError
from lima_kernels.guest.kernels import GuestSpec
from lima_kernels.kernelspec import Installed, Request, for_guest_kernel, make_request
from tests.unit.test_lock import LOCK


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's Jupyter data directory; no other is searched."""
    made = tmp_path / "jupyter"
    made.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(made))
    monkeypatch.delenv("JUPYTER_PATH", raising=False)
    monkeypatch.setattr("jupyter_core.paths.ENV_JUPYTER_PATH", [])
    monkeypatch.setattr("jupyter_core.paths.SYSTEM_JUPYTER_PATH", [])
    return made


def requested(name: str = "lima", display_name: str = "Linux (Lima)", **options: object) -> Request:
    chosen = {"environment": None, "instance": None, "attach": False, **options}
    return make_request(name, display_name, **chosen)


def write(request: Request) -> Path:
    return kernelspec.write(request, user=True, prefix=None)


def foreign(data: Path, name: str, text: str) -> Path:
    directory = data / "kernels" / name
    directory.mkdir(parents=True)
    (directory / "kernel.json").write_text(text)
    return directory


def test_the_plain_spec_names_the_one_vm() -> None:
    assert requested() == Request("lima", "Linux (Lima)", {"instance": "lima-kernels"})


def test_an_environment_gets_a_vm_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("cpus: 2\n")
    monkeypatch.chdir(tmp_path)
    assert requested("science", environment=Path("env.yaml")).config == {
        "instance": "lima-kernels-science",
        "environment": str(file),
    }


def test_a_named_instance_wins(tmp_path: Path) -> None:
    file = tmp_path / "env.yaml"
    file.touch()
    assert requested(environment=file, instance="mine").config["instance"] == "mine"


def test_an_attached_instance_is_marked() -> None:
    assert requested(instance="mine", attach=True).config == {"instance": "mine", "attach": True}


def test_an_environment_file_that_cannot_be_obeyed_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("cpus: many\n")
    with pytest.raises(ConfigurationError) as caught:
        requested(environment=file)
    assert str(caught.value) == f"{file}, line 1: expected int, got str at cpus."


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../a", "ä", "lima\n"])
def test_a_name_that_jupyter_does_not_take_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        requested(name)
    assert str(caught.value) == (
        f"{name!r} cannot be a kernel spec's name. Use letters, digits, '.', '_' and '-' only."
    )


@pytest.mark.parametrize("name", [".", ".."])
def test_a_name_that_is_a_path_is_refused(name: str) -> None:
    # Jupyter would empty the directory that it names: all kernel specs, or the whole data directory.
    with pytest.raises(ConfigurationError, match="cannot be a kernel spec's name"):
        requested(name)


@pytest.mark.parametrize("instance", ["a b", "-a", "a/b", "a..b", "a-", "ä", "a\n"])
def test_an_instance_name_that_lima_does_not_take_is_refused(instance: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        requested(instance=instance)
    assert str(caught.value) == (
        f"{instance!r} cannot be a Lima instance's name. "
        "Use at most 76 letters and digits, with single '.', '_' or '-' between, and no .yaml."
    )


def test_jupyter_finds_what_was_written() -> None:
    directory = write(requested(display_name="My Linux"))
    found = KernelSpecManager().get_kernel_spec("lima")
    assert Path(found.resource_dir) == directory
    assert (found.display_name, found.language, found.interrupt_mode) == ("My Linux", "python", "signal")
    assert found.argv == ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    assert found.metadata == {
        "debugger": True,
        "supported_encryption": "curve",
        "kernel_provisioner": {"provisioner_name": "lima-provisioner", "config": {"instance": "lima-kernels"}},
    }


def test_a_kernel_of_the_guest_is_described_in_its_own_words() -> None:
    found = GuestSpec(("R", "--args", "{connection_file}"), "R 4.4", "R", "message")
    directory = write(for_guest_kernel(requested("lima-ir", ""), "ir", found))
    spec = KernelSpecManager().get_kernel_spec("lima-ir")
    assert (spec.argv, spec.language) == (["R", "--args", "{connection_file}"], "R")
    assert (spec.display_name, spec.interrupt_mode) == ("R 4.4 (Lima)", "message")
    # Jupyter's debugger and its encryption need an ipykernel that is known.
    config = {"instance": "lima-kernels", "kernel": "ir"}
    assert spec.metadata == {"kernel_provisioner": {"provisioner_name": "lima-provisioner", "config": config}}
    assert kernelspec.installed() == [Installed("lima-ir", "R 4.4 (Lima)", directory, config)]


def test_a_display_name_that_was_asked_for_wins() -> None:
    assert for_guest_kernel(requested("r", "Mine"), "ir", GuestSpec(display_name="R")).display_name == "Mine"


@pytest.mark.parametrize(
    ("said", "shown"), [("", "ir (Lima)"), (" \x1b[2J\x07", "ir (Lima)"), ("a\x1b[1mb", "ab (Lima)")]
)
def test_a_guests_display_name_is_text(said: str, shown: str) -> None:
    assert for_guest_kernel(requested("r", ""), "ir", GuestSpec(display_name=said)).display_name == shown


def test_an_interrupt_mode_that_jupyter_does_not_know_does_not_hide_the_spec() -> None:
    write(for_guest_kernel(requested("r", ""), "ir", GuestSpec(("R",), "R", "R", "telepathy")))
    assert KernelSpecManager().get_kernel_spec("r").interrupt_mode == "signal"


def test_a_spec_that_names_no_instance_means_the_default(data: Path) -> None:
    text = {"argv": ["x"], "metadata": {"kernel_provisioner": {"provisioner_name": "lima-provisioner"}}}
    foreign(data, "by-hand", json.dumps(text))
    assert [found.instance for found in kernelspec.installed()] == ["lima-kernels"]


def test_others_may_read_it_and_its_logos_are_there() -> None:
    directory = write(requested())
    names = sorted(path.name for path in directory.iterdir())
    assert names == ["kernel.json", "logo-32x32.png", "logo-64x64.png", "logo-svg.svg"]
    assert directory.stat().st_mode & 0o777 == 0o755
    assert all((directory / name).stat().st_mode & 0o444 == 0o444 for name in names)
    assert (directory / "logo-64x64.png").read_bytes().startswith(b"\x89PNG")


def test_it_is_written_below_a_prefix(tmp_path: Path) -> None:
    directory = kernelspec.write(requested(), user=False, prefix=str(tmp_path / "env"))
    assert directory == tmp_path / "env" / "share" / "jupyter" / "kernels" / "lima"
    assert (directory / "kernel.json").is_file()


def test_a_second_writing_replaces_the_first() -> None:
    directory = write(requested())
    (directory / "old").touch()
    assert write(requested(instance="other")) == directory
    assert not (directory / "old").exists()
    assert [found.config for found in kernelspec.installed()] == [{"instance": "other"}]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_named(data: Path) -> None:
    data.chmod(0o500)
    with pytest.raises(HostError) as caught:
        write(requested())
    data.chmod(0o700)
    assert str(caught.value) == (
        f"The kernel spec could not be written: [Errno 13] Permission denied: '{data / 'kernels'}'. "
        "Try --user, or --prefix DIRECTORY."
    )


def test_only_ours_are_listed(data: Path) -> None:
    foreign(data, "other", json.dumps({"argv": ["x"], "display_name": "Other", "language": "c"}))
    one, two = write(requested("one", "One")), write(requested("two", "Two", instance="mine"))
    assert kernelspec.installed() == [
        Installed("one", "One", one, {"instance": "lima-kernels"}),
        Installed("two", "Two", two, {"instance": "mine"}),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"argv": 3}',
        '{"argv": ["x"], "display_name": "X", "language": "c", "metadata": []}',
        '{"argv": ["x"], "display_name": "X", "language": "c", "metadata": {"kernel_provisioner": null}}',
    ],
)
def test_a_damaged_spec_of_others_does_not_hide_ours(data: Path, text: str) -> None:
    foreign(data, "damaged", text)
    write(requested())
    assert [found.name for found in kernelspec.installed()] == ["lima"]


def test_ours_are_listed_where_their_provisioner_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    write(requested())
    monkeypatch.setattr(KernelProvisionerFactory, "is_provisioner_available", lambda *_: False)
    assert [found.name for found in kernelspec.installed()] == ["lima"]


def test_removing_leaves_the_others() -> None:
    kept = write(requested("kept"))
    gone = write(requested("gone"))
    assert kernelspec.remove("gone") == gone
    assert not gone.exists()
    assert (kept / "kernel.json").is_file()


def test_a_spec_of_others_is_not_removed(data: Path) -> None:
    directory = foreign(data, "other", json.dumps({"argv": ["x"], "display_name": "Other", "language": "c"}))
    with pytest.raises(ConfigurationError) as caught:
        kernelspec.remove("other")
    assert str(caught.value) == "There is no kernel spec 'other' of ours."
    assert directory.is_dir()


def test_the_nearest_name_is_offered_for_one_that_is_not_there() -> None:
    write(requested("science"))
    with pytest.raises(ConfigurationError) as caught:
        kernelspec.remove("sciense")
    assert str(caught.value) == "There is no kernel spec 'sciense' of ours. Did you mean 'science'?"


def test_a_spec_is_removed_by_the_name_it_was_asked_for_with() -> None:
    directory = write(requested("MyKernel"))
    kernelspec.remove("MyKernel")
    assert not directory.exists()


def test_a_linked_spec_is_removed_and_not_what_it_links_to(data: Path, tmp_path: Path) -> None:
    real = write(requested()).rename(tmp_path / "real")
    link = data / "kernels" / "lima"
    link.symlink_to(real)
    kernelspec.remove("lima")
    assert not link.is_symlink()
    assert (real / "kernel.json").is_file()


# The VM of a locked environment


def environment(directory: Path, text: str = "", *, is_locked: bool = True) -> Path:
    """Lay an environment file into a directory, with a lock that answers to it."""
    directory.mkdir()
    file = directory / "lima-env.yaml"
    file.write_text(text)
    if is_locked:
        inputs = locks.inputs_digest(load(file))
        locks.write(file.with_suffix(".lock"), locks.msgspec.structs.replace(LOCK, inputs=inputs))
    return file


def instance_of(file: Path) -> str:
    return kernelspec.instance_for(file, load(file))


def test_an_environment_that_wants_nothing_of_its_machine_shares_the_default_one(tmp_path: Path) -> None:
    assert instance_of(environment(tmp_path / "paper", "python: [numpy]\nenv: {A: b}")) == "lima-kernels"


def test_an_environment_with_a_machine_of_its_own_is_named_after_it(tmp_path: Path) -> None:
    assert instance_of(environment(tmp_path / "My Paper", "cpus: 2")) == "lima-kernels-my-paper"
    assert instance_of(environment(tmp_path / "other", "name: thesis\napt: [git]")) == "lima-kernels-thesis"


def test_its_own_kernel_spec_says_where_it_is(tmp_path: Path) -> None:
    file = environment(tmp_path / "paper")
    write(requested("one", environment=file, instance="mine"))
    assert instance_of(file) == "mine"
    assert instance_of(environment(tmp_path / "other")) == "lima-kernels"


def test_environments_that_differ_in_python_share_a_vm(tmp_path: Path) -> None:
    write(requested("one", environment=environment(tmp_path / "one", "cpus: 2\napt: [git, less]\npython: [numpy]")))
    assert instance_of(environment(tmp_path / "two", "cpus: 2\napt: [less, git]\nname: b")) == "lima-kernels-one"
    assert instance_of(environment(tmp_path / "three", "cpus: 2\napt: [git]")) == "lima-kernels-three"
    assert instance_of(environment(tmp_path / "four", "cpus: 3\napt: [git, less]")) == "lima-kernels-four"


def test_a_vm_is_not_shared_with_what_has_no_lock_is_broken_or_is_others(tmp_path: Path) -> None:
    write(requested("one", environment=environment(tmp_path / "one", "cpus: 2", is_locked=False)))
    broken = environment(tmp_path / "two", "cpus: 2")
    write(requested("two", environment=broken, instance="two"))
    broken.write_text("cpus: many")
    others = environment(tmp_path / "three", "cpus: 2")
    write(requested("three", environment=others, instance="theirs", attach=True))
    assert instance_of(environment(tmp_path / "four", "cpus: 2")) == "lima-kernels-four"
    assert instance_of(others) == "theirs"
