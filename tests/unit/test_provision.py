"""The provision script, run by a real bash against a guest of directories and stand-ins for apt-get and pip."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from lima_kernels import paths
from lima_kernels.environment.keys import (
    DEFAULT,
    Environment,
    ProvisionMode,
    ProvisionScript,
    ProvisionTime,
    PythonFiles,
)
from lima_kernels.environment.provision import BASE_REQUIREMENTS, own_script, provision_digest, provision_script
from lima_kernels.errors import ConfigurationError

HOSTILE = (
    "a; touch /tmp/x",
    "b $(touch /tmp/x)",
    "c `touch /tmp/x`",
    "d' ; touch /tmp/x #",
    'e" && touch /tmp/x "',
    "f ${HOME} \\",
    "g) ; touch /tmp/x; (",
    "h {prefix} {0}",
    "pkg[extra]>=1,<2 ; python_version > '3'",
)


def with_python(*requirements: str) -> Environment:
    return Environment(python=requirements)


class Sandbox:
    """A guest as far as the script sees it: its files below one directory, its tools as scripts that take notes."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.prefix = root / "opt"
        self.provisioned = self.prefix / "provisioned"
        self.failed = root / "failed"
        self.fstab = root / "etc" / "fstab"
        self.fstab.parent.mkdir()
        self.fstab.touch()
        self.bin = root / "bin"
        self.bin.mkdir()
        (self.prefix / "venv" / "bin").mkdir(parents=True)
        monkeypatch.setattr(paths, "GUEST_PREFIX", str(self.prefix))
        monkeypatch.setattr(paths, "GUEST_VENV", str(self.prefix / "venv"))
        monkeypatch.setattr(paths, "GUEST_PROVISIONED", str(self.provisioned))
        monkeypatch.setattr(paths, "GUEST_PROVISION_FAILED", str(self.failed))
        self.tool(self.prefix / "venv" / "bin" / "pip")
        for name in ("apt-get", "python3", "chown", "mount"):
            self.tool(self.bin / name)

    def tool(self, path: Path, then: str = "exit 0") -> None:
        notes = self.root / f"{path.name}.notes"
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>{notes}\n{then}\n')
        path.chmod(0o755)

    def notes(self, name: str) -> list[str]:
        file = self.root / f"{name}.notes"
        return file.read_text().splitlines() if file.exists() else []

    def run(self, environment: Environment, *, has_base: bool = True) -> int:
        script = provision_script(environment, has_base=has_base)
        script = script.replace("{{.UID}}", str(os.getuid())).replace("/etc/", f"{self.root}/etc/")
        path = f"{self.bin}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-c", script], cwd=self.root, env={"PATH": path}, timeout=30, check=False
        ).returncode


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    return Sandbox(tmp_path, monkeypatch)


@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize("environment", [DEFAULT, Environment(apt=("git",), python=HOSTILE)])
def test_bash_can_parse_it(environment: Environment, has_base: bool) -> None:
    script = provision_script(environment, has_base=has_base)
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_hostile_requirements_stay_words(tmp_path: Path) -> None:
    script = provision_script(with_python(*HOSTILE), has_base=True)
    array = next(line for line in script.splitlines() if line.startswith("requirements=("))
    done = subprocess.run(
        ["bash", "-c", f"set -eu\n{array}\nprintf '%s\\n' \"${{requirements[@]}}\""],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert tuple(done.stdout.splitlines()) == HOSTILE
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_hostile_requirements_reach_pip_as_words(sandbox: Sandbox) -> None:
    assert sandbox.run(with_python(*HOSTILE)) == 0
    assert sandbox.notes("pip") == ["install", "--disable-pip-version-check", *HOSTILE]


def test_a_bare_image_gets_what_kernels_need_before_the_rest(sandbox: Sandbox) -> None:
    assert sandbox.run(with_python("polars"), has_base=False) == 0
    assert sandbox.notes("pip") == ["install", "--disable-pip-version-check", *BASE_REQUIREMENTS, "polars"]


def test_an_image_of_ours_is_given_only_what_was_asked_for(sandbox: Sandbox) -> None:
    assert sandbox.run(with_python("polars")) == 0
    assert sandbox.notes("pip") == ["install", "--disable-pip-version-check", "polars"]
    assert sandbox.notes("apt-get") == []


def test_packages_are_installed_without_their_recommendations(sandbox: Sandbox) -> None:
    assert sandbox.run(Environment(apt=("git", "graphviz"))) == 0
    expected = ["update", "-q", "install", "-y", "-q", "--no-install-recommends", "git", "graphviz"]
    assert sandbox.notes("apt-get") == expected
    assert sandbox.notes("pip") == []


def test_a_guest_without_venv_is_given_it(sandbox: Sandbox) -> None:
    sandbox.tool(sandbox.bin / "python3", "exit 1")
    assert sandbox.run(with_python("polars")) == 0
    assert sandbox.notes("apt-get")[-1] == "python3-venv"


def test_success_leaves_the_digest_that_the_host_waits_for(sandbox: Sandbox) -> None:
    environment = with_python("polars")
    assert sandbox.run(environment) == 0
    assert sandbox.provisioned.read_text().strip() == provision_digest(environment, has_base=True)
    assert not sandbox.failed.exists()


def test_the_venv_is_the_guest_users(sandbox: Sandbox) -> None:
    assert sandbox.run(with_python("polars")) == 0
    assert sandbox.notes("chown") == ["-R", str(os.getuid()), f"{sandbox.prefix}/venv"]


def test_the_next_boot_does_nothing_again(sandbox: Sandbox) -> None:
    sandbox.run(with_python("polars"))
    before = sandbox.notes("pip")
    assert sandbox.run(with_python("polars")) == 0
    assert sandbox.notes("pip") == before


def test_another_environment_is_installed_at_the_next_boot(sandbox: Sandbox) -> None:
    sandbox.run(with_python("polars"))
    assert sandbox.run(with_python("polars", "duckdb")) == 0
    assert sandbox.notes("pip")[-2:] == ["polars", "duckdb"]
    assert sandbox.provisioned.read_text().strip() == provision_digest(with_python("polars", "duckdb"), has_base=True)


def test_an_image_of_ours_needs_no_work(sandbox: Sandbox) -> None:
    sandbox.provisioned.write_text("image\n")
    assert sandbox.run(DEFAULT) == 0
    assert sandbox.notes("pip") == sandbox.notes("apt-get") == sandbox.notes("chown") == []


def test_a_failure_says_why_and_leaves_no_digest(sandbox: Sandbox) -> None:
    sandbox.run(with_python("polars"))
    sandbox.tool(
        sandbox.prefix / "venv" / "bin" / "pip",
        "seq 100; echo 'ERROR: No matching distribution found for duckbd'; exit 3",
    )
    assert sandbox.run(with_python("duckbd")) == 3
    said = sandbox.failed.read_text().splitlines()
    assert said[-1] == "ERROR: No matching distribution found for duckbd"
    assert len(said) == 15
    assert not sandbox.provisioned.exists()


def test_success_after_a_failure_forgets_it(sandbox: Sandbox) -> None:
    pip = sandbox.prefix / "venv" / "bin" / "pip"
    sandbox.tool(pip, "exit 1")
    sandbox.run(with_python("polars"))
    assert sandbox.failed.exists()
    sandbox.tool(pip)
    assert sandbox.run(with_python("polars")) == 0
    assert not sandbox.failed.exists()


def test_packages_in_a_guest_without_apt_fail_with_the_reason(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sandbox.bin / "apt-get").unlink()
    for tool in ("awk", "bash", "cat", "cmp", "mkdir", "mv", "rm", "sh", "stat", "tail"):
        found = next(Path(directory, tool) for directory in ("/usr/bin", "/bin") if Path(directory, tool).exists())
        (sandbox.bin / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(sandbox.bin))
    assert sandbox.run(Environment(apt=("git",))) == 1
    assert sandbox.failed.read_text() == "apt-get was not found: packages need a Debian or Ubuntu guest\n"


def test_an_image_without_wishes_is_ready_as_it_is() -> None:
    assert provision_digest(DEFAULT, has_base=True) == paths.GUEST_PROVISIONED_BY_IMAGE
    assert provision_digest(DEFAULT, has_base=False) != paths.GUEST_PROVISIONED_BY_IMAGE


def test_the_digest_changes_with_each_wish() -> None:
    environments = [
        DEFAULT,
        with_python("a"),
        with_python("b"),
        with_python("a", "b"),
        with_python("b", "a"),
        with_python("ab"),
        Environment(apt=("a",)),
        Environment(apt=("a", "b")),
        Environment(apt=("a",), python=("b",)),
    ]
    digests = [provision_digest(environment, has_base=base) for environment in environments for base in (True, False)]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    "change",
    [{"cpus": 8}, {"memory": "8GiB"}, {"env": {"A": "1"}}, {"image": "other"}],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_does_not_change_with_what_is_not_installed(change: dict[str, object]) -> None:
    environment = with_python("a")
    changed = msgspec.structs.replace(environment, **change)
    assert provision_digest(changed, has_base=True) == provision_digest(environment, has_base=True)


def test_the_script_waits_for_the_same_digest_as_the_host() -> None:
    environment = with_python("a")
    assert f"echo {provision_digest(environment, has_base=False)} >" in provision_script(environment, has_base=False)


def test_a_guest_of_the_wanted_python_is_taken(sandbox: Sandbox) -> None:
    sandbox.tool(sandbox.prefix / "venv" / "bin" / "python", "echo 3.11.2")
    for version in ("3.11", "3.11.2"):
        assert sandbox.run(Environment(python=PythonFiles(version=version))) == 0


@pytest.mark.parametrize("version", ["3.1", "3.12", "3.11.20", "4.0"])
def test_a_guest_of_another_python_fails_with_both(sandbox: Sandbox, version: str) -> None:
    sandbox.tool(sandbox.prefix / "venv" / "bin" / "python", "echo 3.11.2")
    assert sandbox.run(Environment(python=PythonFiles(version=version))) == 1
    assert sandbox.failed.read_text() == f"the guest has Python 3.11.2, and the environment is for {version}\n"
    assert not sandbox.provisioned.exists()


def test_requirements_of_files_reach_pip_with_the_others(sandbox: Sandbox) -> None:
    assert sandbox.run(Environment(python=PythonFiles(requirements=("a",), collected=HOSTILE))) == 0
    assert sandbox.notes("pip") == ["install", "--disable-pip-version-check", "a", *HOSTILE]


@pytest.mark.parametrize("name", ["pylock.toml", "uv.lock"])
def test_exact_versions_are_a_locks_to_bring(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        provision_script(Environment(python=PythonFiles(texts={name: ""})), has_base=True)
    assert str(caught.value) == (
        f"The environment's {name} cannot be obeyed without a lock. Make one, beside the environment file: "
        "lima-kernels env lock"
    )


def test_environments_that_an_image_brings_become_the_users(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    environments = sandbox.root / "environments"
    environments.mkdir()
    monkeypatch.setattr(paths, "GUEST_ENVIRONMENTS", str(environments))
    sandbox.provisioned.write_text("image\n")
    assert sandbox.run(DEFAULT) == 0
    assert sandbox.notes("chown") == []
    sandbox.tool(sandbox.bin / "stat", "echo 12345")
    assert sandbox.run(DEFAULT) == 0
    assert sandbox.notes("chown")[-3:] == ["-R", str(os.getuid()), str(environments)]


class Once:
    """A script that runs once, with what it keeps below a directory."""

    def __init__(self, root: Path, mode: ProvisionMode) -> None:
        self.root, self.mode = root, mode

    def run(self, text: str) -> int:
        made = own_script(ProvisionScript(text, self.mode, ProvisionTime.ONCE))
        assert made["mode"] == self.mode.value
        script = self.root / "lima-runs-this"
        script.write_text(made["script"].replace(paths.GUEST_PREFIX, f"{self.root}/opt"))
        env = {"PATH": os.environ["PATH"], "HOME": str(self.root / "home of one")}
        return subprocess.run(["bash", str(script)], cwd=self.root, env=env, timeout=30, check=False).returncode

    @property
    def notes(self) -> list[str]:
        file = self.root / "notes"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture(params=ProvisionMode)
def once(tmp_path: Path, request: pytest.FixtureRequest) -> Once:
    return Once(tmp_path, request.param)


def test_a_script_that_is_to_run_once_runs_once(once: Once) -> None:
    for _boot in range(3):
        assert once.run("echo one >>notes") == 0
    assert once.run("echo two >>notes") == 0
    assert once.notes == ["one", "two"]


def test_a_script_that_failed_runs_again(once: Once) -> None:
    assert once.run("echo try >>notes; [ -e ready ] || exit 7") == 7
    (once.root / "ready").touch()
    assert once.run("echo try >>notes; [ -e ready ] || exit 7") == 0
    assert once.run("echo try >>notes; [ -e ready ] || exit 7") == 0
    assert once.notes == ["try", "try"]
    assert [path for path in once.root.rglob("once/*") if path.suffix] == []


def test_a_script_keeps_its_first_line_and_its_text(once: Once) -> None:
    text = "#!/usr/bin/env python3\nprint('$HOME `id` \\\\n {x} EOF', file=open('notes', 'a'))\n"
    assert once.run(text) == 0
    assert once.notes == ["$HOME `id` \\n {x} EOF"]


def test_a_script_for_every_boot_is_as_it_was_written() -> None:
    assert own_script(ProvisionScript("echo a")) == {"mode": "system", "script": "echo a"}
