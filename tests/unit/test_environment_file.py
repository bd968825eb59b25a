"""What an environment file says beside the VM's size: names, pins, Python from files, files, ports, certificates."""

from __future__ import annotations

import ssl
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml

from lima_kernels.environment import schema, yaml_text
from lima_kernels.environment.keys import (
    Arch,
    FileSpec,
    HostCertificates,
    ImageFiles,
    PortSpec,
    ProvisionScript,
    ProvisionTime,
    PythonFiles,
)
from lima_kernels.environment.provision import provision_digest
from lima_kernels.environment.spec import DEFAULT, Environment, load, parse
from lima_kernels.errors import ConfigurationError

SHA = "ab" * 32
EVERYTHING = f"""
name: my-project
image: debian-12@sha256:{SHA}
arch: aarch64
python: {{requirements: ["polars>=1"], version: "3.11"}}
kernels: [python3, ir]
provision:
  - {{script: echo once, when: once}}
  - {{script: echo always, when: boot}}
files:
  - {{path: /etc/motd, content: "hello\\n"}}
  - {{path: "{{{{.Home}}}}/.config/a.toml", content: "", mode: "0600"}}
ports: [8080, {{guest: 80, host: 18080}}]
caCertificates: none
env: {{TOKEN: x}}
"""


def parsed(text: str, base: Path = Path("/base")) -> Environment:
    return parse(text, source="env.yaml", base=base)


def refusal(text: str, base: Path = Path("/base")) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parsed(text, base)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_the_keys_of_an_environment_that_is_to_be_the_same_elsewhere() -> None:
    environment = parsed(EVERYTHING)
    assert (environment.name, environment.arch, environment.kernels) == ("my-project", Arch.AARCH64, ("python3", "ir"))
    assert (environment.image_name, environment.image_pin) == ("debian-12", SHA)
    assert (environment.requirements, environment.python_version) == (("polars>=1",), "3.11")
    assert environment.provision == (
        ProvisionScript("echo once", when=ProvisionTime.ONCE),
        ProvisionScript("echo always"),
    )
    assert environment.files == (
        FileSpec("/etc/motd", "hello\n"),
        FileSpec("{{.Home}}/.config/a.toml", "", mode="0600"),
    )
    assert environment.ports == (PortSpec(8080), PortSpec(80, 18080))
    assert environment.ca_certificates is HostCertificates.NONE


# What version 0.1 of the package made of these files: VMs carry it as the mark of what they are.
@pytest.mark.parametrize(
    ("text", "digest", "image", "provisioned"),
    [
        ("", "44136fa355b3678a", "d50516c6f6c02dbb", "6ecf174438ee6627"),
        (
            "image: {location: /i/disk, kernel: {location: /i/k, cmdline: ro}}",
            *("3ead001e37b86ac3", "8a244663e3ecd448", "6ecf174438ee6627"),
        ),
        (
            (
                "cpus: 2\napt: [git]\npython: ['a>=1', b]\nenv: {A: '1'}\n"
                "mounts: [{location: /data, 9p: {msize: 8KiB}}]\nmountType: 9p"
            ),
            *("1c0c8efb9cfe349f", "d50516c6f6c02dbb", "d5891c39d302aff5"),
        ),
        (
            "provision: [{script: x, mode: user}, {script: y}]\nmountOptions: {9p: {cache: none}}\ndisk: 5GiB",
            *("1f4bc84f9070d387", "d50516c6f6c02dbb", "6ecf174438ee6627"),
        ),
    ],
)
def test_digests_that_are_written_down_in_vms_stay(text: str, digest: str, image: str, provisioned: str) -> None:
    environment = parsed(text, Path("/b"))
    assert environment.digest.startswith(digest)
    assert environment.image_digest.startswith(image)
    assert provision_digest(environment, has_base=False).startswith(provisioned)


@pytest.mark.parametrize(
    "text",
    [
        *("arch:", "caCertificates: auto", "ports: []", "files: []", "kernels: []", "python: {}", "name: ~"),
        "python: {requirements: []}",
    ],
)
def test_a_key_says_nothing_when_it_says_the_default(text: str) -> None:
    assert parsed(text).digest == DEFAULT.digest


def test_two_ways_to_say_the_same_have_one_digest() -> None:
    assert parsed("python: {requirements: [a]}").digest == parsed("python: [a]").digest
    assert parsed("ports: [80]").digest == parsed("ports: [{guest: 80}]").digest
    assert parsed("provision: [{script: a, when: boot}]").digest == parsed("provision: [{script: a}]").digest


def test_a_pin_is_no_other_image() -> None:
    pinned = parsed(f"image: debian-12@sha256:{SHA}")
    assert pinned.image_digest == DEFAULT.image_digest
    assert pinned.digest != DEFAULT.digest
    given, unpinned = parsed(f"image: {{location: /d, digest: 'sha256:{SHA}'}}"), parsed("image: {location: /d}")
    assert isinstance(given.image, ImageFiles)
    assert given.image_digest == unpinned.image_digest
    assert (given.image_pin, unpinned.image_pin) == (SHA, "")


def test_the_machine_is_what_a_lock_does_not_bring() -> None:
    machine = parsed(EVERYTHING + "apt: [git]\ncpus: 2\n").machine
    assert (machine.name, machine.apt, machine.python, machine.kernels, machine.env) == (None, (), (), (), {})
    assert (machine.cpus, len(machine.ports), len(machine.files), len(machine.provision)) == (2, 2, 2, 2)


def test_environments_share_a_machine_when_only_their_python_differs() -> None:
    one = parsed("name: a\npython: [x]\napt: [git, less]\nenv: {A: '1'}")
    assert one.machine_digest == parsed("name: b\npython: [y]\napt: [less, git]").machine_digest
    others = ["apt: [git]", "apt: [git, less]\ncpus: 2", "apt: [git, less]\nports: [80]", "image: x\napt: [git, less]"]
    assert len({one.machine_digest, *(parsed(text).machine_digest for text in others)}) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: My Project",
            (
                "'My Project' cannot be an environment's name at name. It has small letters, digits and '-', 41 at "
                "most, and begins with no '-'."
            ),
        ),
        ("arch: amd64", "invalid enum value 'amd64' at arch. Choose one of: x86_64, aarch64."),
        ("image: debian-12@", "expected sha256: and 64 hexadecimal digits, got '' at image."),
        ("image: debian-12@sha256:AB", "expected sha256: and 64 hexadecimal digits, got 'sha256:AB' at image."),
        (
            "image: {location: d, digest: md5:1}",
            "expected sha256: and 64 hexadecimal digits, got 'md5:1' at image.digest.",
        ),
        ("python: git", "expected object | array, got str at python."),
        ("python: {requirments: []}", "unknown key 'python.requirments'. Did you mean 'requirements'?"),
        ("python: {version: 3.11}", "expected str, got float at python.version. Put it into quotes."),
        ("python: {version: '3'}", "expected a version such as '3.11', got '3' at python.version."),
        ("python: {requirements: [-e .]}", "'-e .' is not a Python requirement at python.requirements[0]."),
        ("kernels: [../x]", "'../x' is not the name of a kernel spec at kernels[0]."),
        ("kernels: [ir, ir]", "'ir' at kernels[1] is there already."),
        (
            "provision: [{script: a, when: never}]",
            "invalid enum value 'never' at provision[0].when. Choose one of: boot, once.",
        ),
        ("files: [{path: /a}]", "expected one of content and source at files[0]."),
        ("files: [{path: /a, content: a, source: b}]", "expected one of content and source at files[0]."),
        ("files: [{path: /a, content: a, mode: 0644}]", "expected str, got int at files[0].mode. Put it into quotes."),
        (
            "files: [{path: /a, content: a, mode: '9'}]",
            "expected permissions such as '0644', got '9' at files[0].mode.",
        ),
        (
            "files: [{path: /a, content: a}, {path: /a, content: b}]",
            "'/a' at files[1].path is taken by files[0].",
        ),
        ("ports: [0]", "expected a port from 1 to 65535, got 0 at ports[0]."),
        ("ports: [{guest: 1, host: 70000}]", "expected a port from 1 to 65535, got 70000 at ports[0].host."),
        ("ports: [80, 80]", "the guest's port 80 at ports[1] is taken by ports[0]."),
        ("ports: [80, {guest: 81, host: 80}]", "the host's port 80 at ports[1].host is taken by ports[0]."),
        ("ports: ['80']", "expected int | object, got str at ports[0]."),
        ("caCertificates: all", "invalid enum value 'all' at caCertificates. Choose one of: auto, none."),
    ],
)
def test_what_cannot_be_obeyed_is_named(text: str, message: str) -> None:
    assert refusal(text) == f"env.yaml, line 1: {message}"


@pytest.mark.parametrize(
    "path",
    [
        *("a", "/", "/a/", "/a//b", "/a/../b", "/a b", "/a\\nb", "/$(id)", "/*", "~/a", "{{.User}}/a", "/{{.Home}}"),
        *("/proc/a", "/opt/lima-kernels/venv/bin/python", "/etc/lima-kernels/instance.json", "/run/x"),
        *("{{.Home}}/.ssh/authorized_keys", "{{.Home}}/.lima-kernels/x", "{{.Home}}/../a", ""),
    ],
)
def test_a_file_has_a_plain_place_that_is_nobodys(path: str) -> None:
    assert "at files[0].path cannot be written" in refusal(f'files: [{{path: "{path}", content: x}}]')


def test_a_file_is_small_text(tmp_path: Path) -> None:
    (tmp_path / "large").write_text("x" * (256 * 1024 + 1))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "text").write_text("good\n")
    assert refusal("files: [{path: /a, source: large}]", tmp_path) == (
        f"{tmp_path}/large: it is too long: at most 256 KiB."
    )
    assert refusal("files: [{path: /a, source: binary}]", tmp_path) == f"{tmp_path}/binary: it is not UTF-8 text."
    assert refusal("files: [{path: /a, source: none}]", tmp_path) == (
        f"{tmp_path}/none: it cannot be read: No such file or directory."
    )
    assert refusal("files: [{path: /a, source: .}]", tmp_path) == f"{tmp_path}: it is not a file."
    assert parsed("files: [{path: /a, source: text}]", tmp_path).files == (FileSpec("/a", "good\n"),)


def test_a_source_that_changed_makes_another_digest(tmp_path: Path) -> None:
    source, digests = tmp_path / "text", set()
    for content in ("one", "two"):
        source.write_text(content)
        digests.add(parsed("files: [{path: /a, source: text}]", tmp_path).digest)
    assert len(digests) == 2


def test_certificates_are_read_and_keys_are_not(tmp_path: Path) -> None:
    pem = ssl.DER_cert_to_PEM_cert(b"certificate").strip()
    (tmp_path / "ca.pem").write_text(f"-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n{pem}\n")
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n")
    assert parsed("caCertificates: [ca.pem, ca.pem]", tmp_path).ca_certificates == (pem,)
    assert refusal("cpus: 2\ncaCertificates:\n- ca.pem\n- key.pem\n", tmp_path) == (
        f"env.yaml, line 4: {tmp_path}/key.pem at caCertificates[1] has no certificate in it, in PEM form."
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cpus: 2\n\nmemory: many\n", 3),
        ("mounts:\n  - location: /a\n  - location: /b\n    mountPoint: x\n", 4),
        ("mounts:\n- location: /a\n  9p:\n    msize: 1\n", 4),
        ("python:\n  requirements:\n  - a\n  - ''\n", 4),
        ("cpus: 2\nenv:\n  A: 1\n", 2),
        ("cpus: 2\nprovision:\n- {mode: user}\n", 3),
        ("cpus: 2\npyhton: []\n", 2),
        ("apt: &a\n  - git\n  - -y\n", 3),
        ("# a comment\n\ncpus: 0 # none\n", 3),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, line: int) -> None:
    assert refusal(text).startswith(f"env.yaml, line {line}: ")


def test_a_key_that_is_there_twice_is_no_choice() -> None:
    assert refusal("cpus: 2\napt: []\ncpus: 4\n") == ("env.yaml, line 3: the key 'cpus' is there already, in line 1.")


def bomb(levels: int, merge: bool) -> str:
    lines = ["a0: &a0 {k: v}" if merge else "a0: &a0 [x]"]
    for level in range(1, levels):
        parts = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} {{<<: [{parts}]}}" if merge else f"a{level}: &a{level} [{parts}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(12, merge=False),
        bomb(12, merge=True),
        "apt: &a [*a]",
        "env: &a {b: *a}",
        "x" * (yaml_text.MAX_CHARACTERS + 1),
    ],
    ids=["aliases", "merges", "circle", "circle-in-a-mapping", "long"],
)
def test_a_bomb_is_refused_before_it_grows(text: str) -> None:
    assert refusal(text).startswith("env.yaml: it is too long")


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "apt: " + "- " * 5000 + "a"])
def test_depth_is_refused(text: str) -> None:
    assert refusal(text).startswith("env.yaml")


def test_merge_keys_are_yaml_like_any() -> None:
    environment = parsed("mountOptions: {9p: &o {cache: none}}\nmounts: [{location: /a, 9p: {<<: *o, cache: mmap}}]")
    assert environment.mounts[0].ninep.cache is not None
    assert environment.mounts[0].ninep.cache.value == "mmap"


def test_an_environment_of_conda_is_refused_with_the_reason() -> None:
    text = "name: x\nchannels: [conda-forge]\ndependencies:\n- python=3.11\n- gdal\n- pip:\n  - polars\n"
    assert refusal(text) == (
        "env.yaml, line 3: this is an environment file of conda, whose packages (python=3.11, gdal) no guest of ours "
        "can install. Write a lima-env.yaml (lima-kernels env init): Python packages by their PyPI names, all others "
        "from apt."
    )


# Python from files


def test_requirements_come_from_all_files(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "requirements.txt").write_text(
        "# comment\nnumpy>=1 # why\n\npandas \\\n  <3\n-r more/base.txt\nname[x]@ https://host/x#sha256=1\n"
    )
    (tmp_path / "more" / "base.txt").write_text("scipy; python_version > '3'\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\ndependencies = ["rich"]\n')
    environment = parsed(
        "python: {requirements: [a], requirementsFile: requirements.txt, pyproject: pyproject.toml}", tmp_path
    )
    assert environment.requirements == (
        *("a", "numpy>=1", "pandas   <3", "scipy; python_version > '3'", "name[x]@ https://host/x#sha256=1", "rich"),
    )
    assert list(environment.python_texts) == ["pyproject.toml"]


def test_the_uv_lock_beside_a_project_is_read(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    (tmp_path / "uv.lock").write_text("version = 1\n")
    environment = parsed("python: {pyproject: pyproject.toml}", tmp_path)
    assert environment.python_texts["uv.lock"] == "version = 1\n"


def test_where_the_files_are_says_nothing(tmp_path: Path) -> None:
    environments = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "r.txt").write_text("numpy\n")
        environments.append(parsed("python: {requirementsFile: r.txt}", tmp_path / name))
    assert environments[0].digest == environments[1].digest
    assert isinstance(environments[0].python, PythonFiles)
    (tmp_path / "two" / "r.txt").write_text("numpy<2\n")
    assert parsed("python: {requirementsFile: r.txt}", tmp_path / "two").digest != environments[0].digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("numpy\n-e .\n", "requirements.txt, line 2: the option -e cannot be obeyed."),
        (
            "--index-url=https://user:secret@host/\n",
            "requirements.txt, line 1: the option --index-url cannot be obeyed.",
        ),
        ("a==1 --hash=sha256:00\n", "requirements.txt, line 1: hashes are not looked at here."),
        ("\n./wheels/a.whl\n", "requirements.txt, line 2: './wheels/a.whl' is not a Python requirement."),
        ("a @ file:///etc/passwd\n", "requirements.txt, line 1: 'a @ file:///etc/passwd' is not to be had in a guest."),
        ("a\\\n b\n", "requirements.txt, line 1: 'a b' is not a Python requirement."),
        ("-r requirements.txt\n", "requirements.txt: it includes requirements.txt in a circle, or too deeply."),
        ("-r none.txt\n", "none.txt: it cannot be read: No such file or directory."),
        ("$(id)\n", "requirements.txt, line 1: '$(id)' is not a Python requirement."),
    ],
)
def test_requirements_that_cannot_be_obeyed_are_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "requirements.txt").write_text(text)
    line = refusal("python: {requirementsFile: requirements.txt}", tmp_path)
    assert line.startswith(f"{tmp_path}/{message}")
    assert "secret" not in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = \n", ", line 1, column 5: not TOML: invalid value."),
        ("[tool.poetry]\n", ": it has no [project] table, whose dependencies are meant."),
        (
            '[project]\ndynamic = ["dependencies"]\n',
            ": its dependencies are dynamic: only its own build would tell them.",
        ),
        ("[project]\ndependencies = [1]\n", ": expected a requirement, got int at project.dependencies[0]."),
        ('[project]\ndependencies = "a"\n', ": expected an array at project.dependencies."),
        ("a = " + "[" * 3000, ": not TOML: "),
    ],
)
def test_a_project_that_says_too_little_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    line = refusal("python: {pyproject: pyproject.toml}", tmp_path)
    assert line.startswith(f"{tmp_path}/pyproject.toml{message}")


def test_a_pylock_says_all(tmp_path: Path) -> None:
    (tmp_path / "pylock.toml").write_text('lock-version = "1.0"\ncreated-by = "x"\npackages = []\n')
    assert list(parsed("python: {pylock: pylock.toml}", tmp_path).python_texts) == ["pylock.toml"]
    assert "python.pylock says which packages there are" in refusal(
        "python: {pylock: pylock.toml, requirements: [a]}", tmp_path
    )


# The schema


def test_the_published_schema_is_that_of_the_types() -> None:
    assert schema.published() == schema.text()
    assert files("lima_kernels").joinpath("resources", schema.RESOURCE).is_file()


def test_the_schema_takes_what_is_taken_and_refuses_typos() -> None:
    validator = jsonschema.Draft202012Validator(schema.schema())
    validator.check_schema(schema.schema())
    assert list(validator.iter_errors(yaml.safe_load(EVERYTHING))) == []
    assert [error.validator for error in validator.iter_errors({"memroy": "4GiB"})] == ["additionalProperties"]
    assert [error.validator for error in validator.iter_errors({"cpus": "two"})] == ["anyOf"]


def test_every_key_has_a_description() -> None:
    made = schema.schema()
    objects = [made, *(part for part in made["$defs"].values() if "properties" in part)]
    silent = [name for part in objects for name, key in part["properties"].items() if "description" not in key]
    assert silent == []


def test_an_environment_file_is_read_from_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("numpy\n")
    (tmp_path / "lima-env.yaml").write_text("python: {requirementsFile: r.txt}\n")
    assert load(tmp_path / "lima-env.yaml").requirements == ("numpy",)
