"""`lima-kernels env lock, sync, diff, remove` as they are typed, in a guest with the real uv."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jupyter_client.kernelspec import KernelSpecManager

from lima_kernels import kernelspec
from lima_kernels.cli.main import main
from lima_kernels.environment import image
from lima_kernels.environment import lock as locks
from lima_kernels.environment.lock import Lock
from lima_kernels.guest import layers
from lima_kernels.reproduce import removing, syncing
from tests.locked_guest import BASE, Workshop

from .conftest import Machine
from .test_kernel import started

NAME = "paper"
VM = "lima-kernels"
IMAGE = "a" * 64


@pytest.fixture
def project(machine: Machine, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of an environment file."""
    workshop.index.add("tiny", "1.0")
    write(machine.notebooks, "python: [tiny]")
    monkeypatch.chdir(machine.notebooks)
    return machine.notebooks


def write(project: Path, *lines: str, name: str = NAME) -> None:
    (project / "lima-env.yaml").write_text("\n".join((f"name: {name}", *lines, "")))


def lock_of(project: Path) -> Lock:
    return locks.read(project / "lima-env.lock")


def relock(project: Path, **changed: Any) -> None:
    """Change what a lock says, as another host would have written it."""
    lock = lock_of(project)
    platform = msgspec.structs.replace(lock.platforms["x86_64"], **changed)
    locks.write(project / "lima-env.lock", msgspec.structs.replace(lock, platforms={"x86_64": platform}))


def versions(project: Path) -> dict[str, str]:
    packages = lock_of(project).pylock["packages"]
    return {package["name"]: package["version"] for package in packages if package["name"] not in BASE}


def apt(project: Path) -> dict[str, str]:
    return lock_of(project).platforms["x86_64"].apt


@pytest.fixture
def env(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str, code: int = 0) -> str:
        """Run a command and return what it printed, as one line; of one that fails the last line."""
        capsys.readouterr()
        found = main(["env", *arguments])
        captured = capsys.readouterr()
        assert found == code, captured.out + captured.err
        assert "Traceback" not in captured.err
        return captured.err.splitlines()[-1] if code == 1 else " ".join(captured.out.split())

    return run


# Locks


def test_lock_sync_diff(project: Path, workshop: Workshop, env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert env("lock").endswith("lima-env.lock: 6 Python packages, for x86_64")
    lock = lock_of(project)
    assert {package["name"] for package in lock.pylock["packages"]} == {*BASE, "tiny"}
    assert apt(project) == {"base": "1"}
    before = (project / "lima-env.lock").read_bytes()
    env("lock")
    assert (project / "lima-env.lock").read_bytes() == before, "the same is the same text"
    assert env("sync").startswith(f"The VM {VM} is now what ")
    assert syncing.hosted(VM).environments == {NAME: syncing.digest_of(apt(project))}
    assert env("diff").startswith(f"The VM {VM} is what ")
    (build,) = workshop.builds(NAME)
    # What is so already is seen by the forkserver: no program is started in the guest for that.
    monkeypatch.setattr(layers, "ask", None)
    assert env("sync").startswith(f"The VM {VM} is already what ")
    assert workshop.builds(NAME) == [build]


def test_a_version_stays_until_it_is_upgraded_by_its_name_or_with_all(
    project: Path, workshop: Workshop, env: Any
) -> None:
    workshop.index.add("other", "1.0")
    write(project, "python: [tiny, other]", "apt: [tree, jq]")
    workshop.debian.set("archive", {"tree": {"2.0": "0" * 64}, "jq": {"1.6": "0" * 64}})
    env("lock")
    assert (versions(project), apt(project)) == (
        {"tiny": "1.0", "other": "1.0"},
        {"base": "1", "tree": "2.0", "jq": "1.6"},
    )
    for name in ("tiny", "other"):
        workshop.index.add(name, "2.0")
    both = {"2.0": "0" * 64, "2.1": "0" * 64}
    workshop.debian.set("archive", {"tree": both, "jq": {"1.6": "0" * 64, "1.7": "0" * 64}})
    env("lock")
    assert versions(project) == {"tiny": "1.0", "other": "1.0"}
    env("lock", "--upgrade", "tiny")
    assert (versions(project), apt(project)["tree"]) == ({"tiny": "2.0", "other": "1.0"}, "2.0")
    env("lock", "--upgrade", "tree")
    assert versions(project) == {"tiny": "2.0", "other": "1.0"}
    assert apt(project) == {"base": "1", "tree": "2.1", "jq": "1.6"}
    env("lock", "--upgrade")
    assert versions(project) == {"tiny": "2.0", "other": "2.0"}
    assert apt(project) == {"base": "1", "tree": "2.1", "jq": "1.7"}


def test_other_architectures_stay_as_long_as_the_same_is_asked(project: Path, env: Any) -> None:
    def add_another() -> None:
        lock = lock_of(project)
        both = {**lock.platforms, "aarch64": msgspec.structs.replace(lock.platforms["x86_64"], kernel="6.1-arm64")}
        locks.write(project / "lima-env.lock", msgspec.structs.replace(lock, platforms=both))

    env("lock")
    add_another()
    assert env("lock").endswith("for aarch64, x86_64")
    assert lock_of(project).platforms["aarch64"].kernel == "6.1-arm64"
    assert env("lock", "--upgrade", "tiny").endswith("for aarch64, x86_64")
    assert env("lock", "--upgrade").endswith("for x86_64")
    add_another()
    write(project, "python: [tiny>=1]")
    assert env("lock").endswith("for x86_64")


def test_what_was_installed_by_hand_is_seen_and_can_be_locked(project: Path, workshop: Workshop, env: Any) -> None:
    env("lock")
    env("sync")
    workshop.index.add("tiny", "2.0")
    uv = workshop.directory / ".uv" / "bin" / "uv"
    python = workshop.directory / NAME / "current" / "bin" / "python"
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, "tiny==2.0"], check=True, timeout=60)
    table = env("diff", code=4)
    assert ("tiny" in table, "1.0" in table, "2.0" in table) == (True, True, True)
    # The file that it was made from still asks for less.
    env("lock", "--from-guest")
    assert versions(project) == {"tiny": "2.0"}
    assert env("sync").startswith(f"The VM {VM} is now what ")
    assert env("diff").startswith(f"The VM {VM} is what ")


def test_what_has_not_been_made_cannot_be_locked_from_the_guest(project: Path, env: Any) -> None:
    assert env("lock", "--from-guest", code=1) == (
        f"lima-kernels: The VM {VM!r} has no environment {NAME!r} to lock. Make it first: lima-kernels env sync"
    )


def test_another_python_than_the_images_is_refused(project: Path, env: Any) -> None:
    write(project, "python: {requirements: [tiny], version: '3.1'}")
    assert "The environment wants Python 3.1, and its image has Python 3." in env("lock", code=1)
    assert not (project / "lima-env.lock").exists()


def test_requirements_that_do_not_go_together_are_explained(
    project: Path, workshop: Workshop, env: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop.index.add("needy", "1.0", "tiny>=2")
    write(project, "python: [tiny==1.0, needy]")
    assert main(["env", "lock"]) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == (
        "lima-kernels: The Python requirements do not go together. Correct python in the environment file."
    )
    assert "needy" in said
    assert "Traceback" not in said
    assert not (project / "lima-env.lock").exists()


def test_a_pylock_without_ipykernel_is_refused(project: Path, env: Any) -> None:
    wheel = {"url": "https://example.invalid/a-1-py3-none-any.whl", "hashes": {"sha256": "0" * 64}}
    pylock = {"lock-version": "1.0", "created-by": "us", "packages": [{"name": "a", "version": "1", "wheels": [wheel]}]}
    (project / "pylock.toml").write_text(locks.tomli_w.dumps(pylock))
    write(project, "python: {pylock: pylock.toml}")
    assert "lock of its Python packages has no ipykernel" in env("lock", code=1)


@pytest.mark.parametrize("has_ipykernel", [True, False])
def test_a_project_with_a_uv_lock(project: Path, workshop: Workshop, env: Any, has_ipykernel: bool) -> None:
    needs = ["ipykernel", "tiny"] if has_ipykernel else ["tiny"]
    (project / "pyproject.toml").write_text(
        f'[project]\nname = "mine"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = {json.dumps(needs)}\n'
    )
    uv = workshop.directory / ".uv" / "bin" / "uv"
    subprocess.run([uv, "lock", "--quiet"], cwd=project, check=True, timeout=60)
    # The lock says what is taken, not the index.
    workshop.index.add("tiny", "2.0")
    write(project, "python: {pyproject: pyproject.toml}")
    if has_ipykernel:
        assert env("lock").endswith("2 Python packages, for x86_64")
        assert versions(project) == {"tiny": "1.0"}
    else:
        assert "has no ipykernel" in env("lock", code=1)


# What a VM cannot be


@pytest.mark.parametrize("verb", ["sync", "diff"])
def test_without_a_lock_it_says_how_to_make_one(project: Path, env: Any, verb: str) -> None:
    file = project / "lima-env.yaml"
    assert env(verb, code=1) == (
        f"lima-kernels: The environment {file} has no lock. Make it: lima-kernels env lock {file}"
    )


@pytest.mark.parametrize("verb", ["lock", "sync", "diff"])
def test_bad_files_are_one_line(project: Path, env: Any, verb: str) -> None:
    file = project / "lima-env.yaml"
    (project / "lima-env.lock").write_text("version = 99\n")
    assert "made by a newer lima-kernels" in env(verb, code=1)
    file.write_text("cpus: many\n")
    assert env(verb, code=1) == f"lima-kernels: {file}, line 1: expected int, got str at cpus."
    file.unlink()
    assert "There is no lima-env.yaml" in env(verb, code=1)


def test_a_lock_for_another_architecture(project: Path, env: Any) -> None:
    env("lock")
    lock = lock_of(project)
    elsewhere = msgspec.structs.replace(lock, platforms={"aarch64": lock.platforms["x86_64"]})
    locks.write(project / "lima-env.lock", elsewhere)
    assert env("sync", code=1) == (
        f"lima-kernels: The lock of {NAME!r} has nothing for x86_64, only for aarch64. "
        "Add this architecture to it, here: lima-kernels env lock"
    )


def test_a_lock_of_another_image(project: Path, image_files: Path, env: Any) -> None:
    manifest = image.decode_manifest((image_files / "image.json").read_bytes())
    known = msgspec.structs.replace(manifest, version=2, sha256={manifest.disk: IMAGE})
    (image_files / "image.json").write_bytes(msgspec.json.encode(known))
    env("lock")
    assert lock_of(project).platforms["x86_64"].image_sha256 == IMAGE
    relock(project, image_sha256="b" * 64)
    assert env("sync", code=1).startswith(
        f"lima-kernels: The VM {VM!r} was made from another image than the lock of {NAME!r} names: expected SHA-256 "
        f"{'b' * 12}, got {'a' * 12}."
    )


def test_two_environments_with_other_debian_packages_do_not_share_a_vm(
    project: Path, workshop: Workshop, env: Any
) -> None:
    env("lock")
    env("sync")
    other = project / "other.yaml"
    other.write_text("name: other\napt: [tree]\n")
    env("lock", "other.yaml", "--instance", VM)
    assert env("sync", "other.yaml", "--instance", VM, code=1).startswith(
        f"lima-kernels: The environments 'other' and {NAME!r} cannot share the VM {VM!r}: other Debian packages."
    )
    assert workshop.debian.installed == {"base": "1"}
    env("remove", NAME)
    assert env("sync", "other.yaml", "--instance", VM).startswith(f"The VM {VM} is now what ")
    assert workshop.debian.installed == {"base": "1", "tree": "2.1"}


def test_two_environments_that_differ_in_python_share_a_vm(project: Path, workshop: Workshop, env: Any) -> None:
    env("lock")
    env("sync")
    (project / "other.yaml").write_text("name: other\n")
    env("lock", "other.yaml")
    assert env("sync", "other.yaml").startswith(f"The VM {VM} is now what ")
    assert (len(workshop.builds(NAME)), len(workshop.builds("other"))) == (1, 1)
    assert sorted(syncing.hosted(VM).environments) == ["other", NAME]


def test_two_projects_with_environments_of_one_name_do_not_undo_each_other(
    project: Path, workshop: Workshop, env: Any
) -> None:
    env("lock")
    env("sync")
    copied = project / "copied"
    copied.mkdir()
    for name in ("lima-env.yaml", "lima-env.lock"):
        shutil.copy(project / name, copied)
    # The very same environment is no other one.
    assert env("sync", "copied/lima-env.yaml").startswith(f"The VM {VM} is already what ")
    env("sync")
    write(copied, "python: [tiny>=1]")
    env("lock", "copied/lima-env.yaml")
    before = workshop.builds(NAME)
    assert env("sync", "copied/lima-env.yaml", code=1) == (
        f"lima-kernels: The VM {VM!r} has an environment {NAME!r} already, that of {project / 'lima-env.yaml'}: each "
        f"would undo the other. Give {copied / 'lima-env.yaml'} another name, and lock it again."
    )
    assert workshop.builds(NAME) == before
    # A project that is gone is in nobody's way.
    (project / "lima-env.yaml").rename(project / "elsewhere.txt")
    assert env("sync", "copied/lima-env.yaml").startswith(f"The VM {VM} is now what ")


# Kernels


def test_a_kernel_makes_its_environment_and_says_once_what_has_changed(
    machine: Machine, project: Path, workshop: Workshop, spec: str, env: Any
) -> None:
    env("lock")
    file = str(project / "lima-env.yaml")
    with started(machine, environment=file) as notebook:
        assert notebook.outputs("import tiny; print(tiny.VERSION)") == {"stdout": "1.0\n"}
        assert notebook.run("import sys; print(sys.prefix)").startswith(str(workshop.directory / NAME / "builds"))
    (packages,) = (workshop.directory / NAME / "current" / "lib").glob("python3*/site-packages")
    record = packages / "tiny-1.0.dist-info" / "RECORD"
    record.write_text(record.read_text() + "more.py,,\n")
    write(project, "python: [tiny>=1]")
    with started(machine, environment=file) as notebook:
        drifted, stale = notebook.outputs("1")["stderr"].splitlines()
        assert drifted.startswith(f"[lima-kernels] The environment {NAME} is no longer what its lock says. See how: ")
        assert stale == (
            f"[lima-kernels] The environment file of {NAME} has changed since it was locked: lima-kernels env lock"
        )
        assert notebook.outputs("2") == {}
    assert len(workshop.builds(NAME)) == 1, "what somebody changed is left as it is"


def test_an_environment_in_use_is_only_removed_by_force(
    machine: Machine, project: Path, workshop: Workshop, spec: str, env: Any
) -> None:
    env("lock")
    with started(machine, environment=str(project / "lima-env.yaml")) as notebook:
        notebook.run("1")
        assert "1 processes run in the environment paper. End its kernels first, or: --force" in env(
            "remove", NAME, code=1
        )
        assert syncing.hosted(VM).environments
        assert env("remove", NAME, "--force") == f"Removed {NAME} from the VM {VM}"
    assert workshop.builds(NAME) == []
    assert removing.hosting() == {}


def test_an_environment_of_a_stopped_vm_is_out_of_reach(project: Path, env: Any) -> None:
    env("lock")
    env("sync")
    assert main(["stop", VM]) == 0
    assert "is stopped" in env("remove", NAME, code=1)
    assert main(["delete", VM]) == 0
    assert removing.hosting() == {}, "with the VM goes what was in it"


def with_own_kernel(workshop: Workshop) -> None:
    argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    document = json.dumps({"argv": argv, "display_name": "Own \x1b[1m1", "language": "own", "env": {"OWN": "{x}"}})
    place = "own-1.0.data/data/share/jupyter/kernels/own/kernel.json"
    workshop.index.add("own", "1.0", files={place: document})


def test_the_other_kernels_of_an_environment_are_installed_and_run_in_it(
    project: Path, workshop: Workshop, spec: str, env: Any, machine: Machine
) -> None:
    with_own_kernel(workshop)
    write(project, "python: [tiny, own]", "kernels: [python3, own]")
    env("lock")
    file = str(project / "lima-env.yaml")
    assert main(["install", "--user", "--name", "mine", "--environment", "lima-env.yaml"]) == 0
    found = {one.name: one for one in kernelspec.installed() if one.name.startswith("mine")}
    config = {"instance": VM, "environment": file}
    assert {name: one.config for name, one in found.items()} == {
        "mine": config,
        "mine-own": {**config, "kernel": "own"},
    }
    assert found["mine-own"].display_name == f"Own 1 ({NAME})"
    with started(machine, environment=file, kernel="own") as notebook:
        assert notebook.run("import sys; print(sys.prefix)").startswith(str(workshop.directory / NAME / "builds"))
        assert notebook.run("import tiny; print(tiny.VERSION)") == "1.0"
    env("remove", NAME)
    assert not {"mine", "mine-own"} & set(KernelSpecManager().find_kernel_specs())


def test_a_kernel_that_an_environment_lacks_installs_nothing(
    project: Path, env: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(project, "kernels: [julia]")
    env("lock")
    capsys.readouterr()
    assert main(["install", "--user", "--name", "mine", "--environment", "lima-env.yaml"]) == 1
    assert f"The VM {VM!r} has no kernel 'julia'." in capsys.readouterr().err
    assert "mine" not in KernelSpecManager().find_kernel_specs()
