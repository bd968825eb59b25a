"""The command line as it is typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import pytest

from lima_kernels.cli.main import main
from lima_kernels.lima import mounting
from tests.fake_guest import FakeGuest

from .conftest import Machine, configure


def notebook(machine: Machine, *cells: str) -> Path:
    path = machine.notebooks / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
    return path


def test_install_list_uninstall(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", "--user", "--name", "mine", "--display-name", "My Linux"]) == 0
    document = json.loads((machine.root / "jupyter" / "kernels" / "mine" / "kernel.json").read_text())
    assert document["display_name"] == "My Linux"
    assert document["metadata"]["kernel_provisioner"]["provisioner_name"] == "lima-provisioner"
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    mine = next(row for row in rows if row["name"] == "mine")
    assert (mine["instance"], mine["status"]) == ("lima-kernels", "not made yet")
    assert main(["uninstall", "mine"]) == 0
    assert not (machine.root / "jupyter" / "kernels" / "mine").exists()


def test_uninstall_names_the_nearest(machine: Machine, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["uninstall", "limo"]) == 1
    assert capsys.readouterr().err == "lima-kernels: There is no kernel spec 'limo' of ours. Did you mean 'lima'?\n"


def test_install_with_an_environment_checks_it_first(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    file = machine.root / "env.yaml"
    file.write_text("cpu: 4\n")
    assert main(["install", "--user", "--environment", str(file)]) == 1
    assert capsys.readouterr().err == f"lima-kernels: {file}, line 1: unknown key 'cpu'. Did you mean 'cpus'?\n"
    assert not (machine.root / "jupyter" / "kernels").exists()


def test_an_environment_has_a_vm_of_its_own(machine: Machine) -> None:
    file = machine.root / "env.yaml"
    file.write_text("cpus: 4\n")
    assert main(["install", "--user", "--name", "big", "--environment", str(file)]) == 0
    document = json.loads((machine.root / "jupyter" / "kernels" / "big" / "kernel.json").read_text())
    assert document["metadata"]["kernel_provisioner"]["config"] == {
        "instance": "lima-kernels-big",
        "environment": str(file),
    }


def test_run_writes_the_result_in_place(machine: Machine, guest: FakeGuest, spec: str) -> None:
    path = notebook(machine, "print(6 * 7)", "1 + 1")
    assert main(["run", str(path)]) == 0
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].outputs[0].text == "42\n"
    assert cells[1].outputs[0].data["text/plain"] == "2"


def test_run_writes_elsewhere(machine: Machine, guest: FakeGuest, spec: str) -> None:
    path = notebook(machine, "1")
    before = path.read_text()
    assert main(["run", str(path), "--output", str(machine.root / "out" / "result.ipynb")]) == 0
    assert path.read_text() == before
    assert nbformat.read(machine.root / "out" / "result.ipynb", as_version=4).cells[0].outputs


def test_run_stops_at_a_failing_cell(
    machine: Machine, guest: FakeGuest, spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = notebook(machine, "1 / 0", "print('after')")
    assert main(["run", str(path)]) == 3
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert not nbformat.read(path, as_version=4).cells[1].outputs
    assert main(["run", str(path), "--allow-errors"]) == 0
    assert nbformat.read(path, as_version=4).cells[1].outputs[0].text == "after\n"


def test_run_has_a_limit_for_each_cell(
    machine: Machine, guest: FakeGuest, spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = notebook(machine, "import time; time.sleep(60)")
    assert main(["run", str(path), "--timeout", "1"]) == 3
    assert "timed out" in capsys.readouterr().err


def test_run_refuses_what_is_no_notebook(machine: Machine, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    (machine.notebooks / "x.ipynb").write_text("no json")
    assert main(["run", str(machine.notebooks / "x.ipynb")]) == 1
    assert "x.ipynb is not a notebook" in capsys.readouterr().err
    assert (machine.notebooks / "x.ipynb").read_text() == "no json"
    assert main(["run", str(machine.notebooks / "none.ipynb")]) == 1
    assert "cannot be read: No such file or directory." in capsys.readouterr().err


def test_run_names_the_nearest_kernel(machine: Machine, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(notebook(machine, "1")), "--kernel", "lema"]) == 1
    assert capsys.readouterr().err.endswith("There is no kernel spec 'lema'. Did you mean 'lima'?\n")


def test_start_stop_delete(machine: Machine, guest: FakeGuest, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", "--directory", str(machine.notebooks)]) == 0
    assert machine.instances() == ["lima-kernels"]
    assert main(["delete"]) == 1
    assert "The VM 'lima-kernels' runs." in capsys.readouterr().err
    assert main(["stop"]) == 0
    assert main(["stop"]) == 0
    assert len(machine.calls("stop")) == 1
    assert main(["delete"]) == 0
    assert machine.instances() == []


def test_start_tells_the_guest_when_to_stop_by_itself(machine: Machine, guest: FakeGuest, spec: str) -> None:
    configure(machine, idle_timeout=600)
    assert main(["start", "--directory", str(machine.notebooks)]) == 0
    (settings,) = (machine.guest_home / ".lima-kernels").glob("*/settings.json")
    assert json.loads(settings.read_text())["idle_timeout"] == 600


def test_start_obeys_the_specs_limits_and_refuses_wrong_ones(
    machine: Machine, guest: FakeGuest, spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(machine, boot_timeout="soon")
    assert main(["start", "--directory", str(machine.notebooks)]) == 1
    assert capsys.readouterr().err.startswith("lima-kernels: The kernel spec's config is wrong: ")
    configure(machine, boot_timeout=60, bootime=1)
    assert main(["start", "--directory", str(machine.notebooks)]) == 1
    assert capsys.readouterr().err.endswith("has an unknown key 'bootime'. Did you mean 'boot_timeout'?\n")
    assert machine.instances() == []


def test_start_takes_no_vm_that_no_kernel_spec_names(
    machine: Machine, spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["start", "lima-kernel"]) == 1
    assert capsys.readouterr().err == (
        "lima-kernels: No kernel spec names the VM 'lima-kernel'. Did you mean 'lima-kernels'?\n"
    )


def test_delete_leaves_the_vms_of_others_alone_unless_forced(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = machine.lima_home / "docker"
    directory.mkdir()
    (directory / "lima.yaml").write_text("images: []\n")
    assert main(["delete", "docker"]) == 1
    assert "was not made by lima-kernels" in capsys.readouterr().err
    assert machine.instances() == ["docker"]
    assert main(["delete", "docker", "--force"]) == 0
    assert machine.instances() == []


def test_doctor_says_what_mends(machine: Machine, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["limactl"]["outcome"] == "ok"
    assert rows["limactl"]["detail"].startswith("2.2.0 at ")
    assert rows["kernel spec"] == {"check": "kernel spec", "outcome": "ok", "detail": "lima", "fix": ""}
    assert rows["provisioner"]["outcome"] == "ok"
    assert all(row["fix"] for row in rows.values() if row["outcome"] != "ok")


@pytest.mark.parametrize("has_virtiofsd", [True, False])
def test_doctor_names_the_mount_types(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, has_virtiofsd: bool
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(mounting, "_vhost_user_directories", lambda: [machine.root])
    if has_virtiofsd:
        machine.script("virtiofsd", "exit 0")
        (machine.root / "a.json").write_text(f'{{"type": "fs", "binary": "{machine.bin}/virtiofsd"}}')
    main(["doctor", "--json"])
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    virtiofs = f"virtiofs ({machine.bin}/virtiofsd)"
    assert (rows["mount types"]["outcome"], rows["mount types"]["detail"]) == (
        "ok",
        f"9p, reverse-sshfs, {virtiofs}" if has_virtiofsd else "9p, reverse-sshfs (no virtiofsd in Rust)",
    )


def test_doctor_fails_where_limactl_is_too_old(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.tell(version="1.0.0")
    assert main(["doctor", "--json"]) == 1
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["limactl"]["outcome"], rows["limactl"]["detail"]) == (
        "failure",
        "limactl 1.0.0 is too old: 2.0.0 is needed.",
    )


def test_doctor_fails_where_limas_sockets_would_be_too_long(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIMA_HOME", str(machine.root / ("d" * 80)))
    assert main(["doctor", "--json"]) == 1
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["path lengths"]["fix"] == "set LIMA_HOME to a shorter path"


def test_image_build_elsewhere_than_on_linux_says_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert main(["image", "build"]) == 1
    assert "A guest image can only be built on Linux." in capsys.readouterr().err


def test_image_build_names_the_missing_tools(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda tool, path=None: None if tool == "mmdebstrap" else tool)
    assert main(["image", "build"]) == 1
    assert capsys.readouterr().err == (
        "lima-kernels: Building a guest image needs mmdebstrap. "
        "sudo apt-get install --no-install-recommends mmdebstrap\n"
    )


def test_image_list_and_a_current_image(
    machine: Machine, image_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["image", "list"]) == 0
    assert capsys.readouterr().out.split() == ["debian-12"]
    assert main(["image", "build"]) == 0
    assert "is current" in capsys.readouterr().out


def test_a_wrong_command_line_gives_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["instal"])
    assert caught.value.code == 2
