"""The lima.yaml of an instance: what of Lima's template stays, and what tells that the instance is ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from lima_kernels.errors import InstanceError
from lima_kernels.lima import template
from lima_kernels.lima.models import Instance, InstanceConfig, Provision, decode_instances
from lima_kernels.lima.template import Config, GuestFile, OwnerMark, Source, owner_mark, render

DATA = Path(__file__).parents[1] / "data" / "limactl-2.2"
MARK_PATH = "/etc/lima-kernels/instance.json"
EMPTY = Config(images=[], mounts=[], provision=[], files=[])
MARK = OwnerMark(1, "e" * 64, "i" * 64, Source.TEMPLATE, "p" * 64, ("/nb",))


def rendered(config: Config, base: str = "") -> dict[str, Any]:
    document = yaml.safe_load(render(config, base))
    assert isinstance(document, dict)
    return document


def marked(content: str, path: str = MARK_PATH) -> Instance:
    return Instance("a", "/a", config=InstanceConfig(provision=(Provision(), Provision(path, content))))


@pytest.fixture
def debian() -> str:
    return (DATA / "template-debian-13.yaml").read_text()


def test_the_templates_mounts_are_dropped(debian: str) -> None:
    assert yaml.safe_load(debian)["mounts"] == [{"location": "~"}]
    assert rendered(EMPTY, debian)["mounts"] == []


def test_only_the_mounts_that_were_asked_for_are_shown(debian: str) -> None:
    asked = {"location": "/home/user/nb", "writable": True}
    assert rendered(EMPTY._replace(mounts=[asked]), debian)["mounts"] == [asked]


def test_the_templates_images_and_the_rest_are_kept(debian: str) -> None:
    base = yaml.safe_load(debian)
    document = rendered(EMPTY, debian)
    for key in ("images", "minimumLimaVersion", "mountTypesUnsupported"):
        assert document[key] == base[key]


def test_images_of_ones_own_replace_the_templates(debian: str) -> None:
    images = [{"location": "/images/disk.qcow2", "arch": "x86_64"}]
    assert rendered(EMPTY._replace(images=images), debian)["images"] == images


def test_sizes_are_lima_s_unless_they_were_asked_for() -> None:
    base = "cpus: 8\nmemory: 16GiB\n"
    document = rendered(EMPTY._replace(memory="2GiB", mount_type="9p"), base)
    assert (document["cpus"], document["memory"], document["mountType"]) == (8, "2GiB", "9p")
    assert "disk" not in document
    assert not {"cpus", "memory", "disk", "mountType"} & rendered(EMPTY).keys()


@pytest.mark.parametrize("value", [True, False])
def test_inotify_is_limas_to_decide_unless_it_was_asked_for(value: bool) -> None:
    assert rendered(EMPTY._replace(mount_inotify=value), f"mountInotify: {not value}")["mountInotify"] is value
    assert "mountInotify" not in rendered(EMPTY)


def test_the_options_of_a_mount_are_passed_on_as_they_are() -> None:
    mount = {"location": "/a", "9p": {"protocolVersion": "9p2000.L", "cache": "none"}, "virtiofs": {"queueSize": 2}}
    assert rendered(EMPTY._replace(mounts=[mount]))["mounts"] == [mount]


def test_what_a_templates_kernel_cannot_mount_is_read(debian: str) -> None:
    assert template.unsupported_mount_types(debian) == ("9p",)
    assert template.unsupported_mount_types("images: []") == ()
    assert template.unsupported_mount_types("mountTypesUnsupported:") == ()
    assert template.unsupported_mount_types("") == ()


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_ephemeral_ports_are_not_forwarded(proto: str) -> None:
    rules = [rule for rule in rendered(EMPTY)["portForwards"] if rule["proto"] == proto]
    assert rules
    assert all(rule["ignore"] is True and rule["guestPortRange"] == [32768, 65535] for rule in rules)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_ephemeral_ports_of_all_addresses_are_not_forwarded_either(proto: str) -> None:
    # Lima passes over an ignore rule for 127.0.0.1, its default, when the guest listens on 0.0.0.0
    # (pkg/portfwd/forward.go, forwardingAddresses), and then forwards by its own last rule.
    rules = [rule for rule in rendered(EMPTY)["portForwards"] if rule["proto"] == proto]
    assert any(rule.get("guestIP") in ("0.0.0.0", "::") for rule in rules)


def test_the_forwards_of_a_template_come_first() -> None:
    forward = {"guestPort": 40000, "hostPort": 40000}
    rules = rendered(EMPTY, yaml.safe_dump({"portForwards": [forward]}))["portForwards"]
    assert rules[0] == forward
    assert {rule.get("proto") for rule in rules if rule.get("ignore")} == {"tcp", "udp"}


def test_the_hosts_keys_and_agent_stay_on_the_host() -> None:
    base = yaml.safe_dump({"ssh": {"loadDotSSHPubKeys": True, "forwardAgent": True, "localPort": 60022}})
    assert rendered(EMPTY, base)["ssh"] == {"loadDotSSHPubKeys": False, "forwardAgent": False, "localPort": 60022}
    assert rendered(EMPTY)["ssh"] == {"loadDotSSHPubKeys": False, "forwardAgent": False}


def test_containerd_is_left_out_unless_the_template_has_it() -> None:
    assert rendered(EMPTY)["containerd"] == {"system": False, "user": False}
    assert rendered(EMPTY, "containerd: {system: true}")["containerd"] == {"system": True}


def test_the_templates_provisioning_runs_before_ours() -> None:
    theirs = {"mode": "system", "script": "theirs"}
    ours = {"mode": "user", "script": "ours\n  indented: ✓ {{.UID}}\n"}
    config = EMPTY._replace(provision=[ours], files=[GuestFile("/etc/a", '{"a": "b"}\n')])
    assert rendered(config, yaml.safe_dump({"provision": [theirs]}))["provision"] == [
        theirs,
        {"mode": "data", "path": "/etc/a", "content": '{"a": "b"}\n'},
        ours,
    ]


def test_certificates_reach_the_guest_as_they_are() -> None:
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
    assert rendered(EMPTY._replace(ca_certificates=[pem]))["caCerts"] == {"certs": [pem]}
    assert "caCerts" not in rendered(EMPTY)


@pytest.mark.parametrize("key", ["ssh", "portForwards", "provision"])
def test_a_key_without_a_value_in_the_template_is_no_error(key: str) -> None:
    assert rendered(EMPTY, f"{key}:\n") == rendered(EMPTY)


def test_the_owners_mark_comes_back_as_it_was_written() -> None:
    text = render(EMPTY._replace(files=[GuestFile(MARK_PATH, msgspec.json.encode(MARK).decode())]))
    config = msgspec.convert(yaml.safe_load(text), InstanceConfig)
    assert owner_mark(Instance("a", "/a", config=config), MARK_PATH) == MARK


def test_a_mark_of_before_directories_were_noted_is_read() -> None:
    older = {key: value for key, value in msgspec.to_builtins(MARK).items() if key != "directories"}
    mark = owner_mark(marked(msgspec.json.encode(older).decode()), MARK_PATH)
    assert mark is not None
    assert mark.directories is None


@pytest.mark.parametrize("state", ["running", "stopped", "broken"])
def test_the_mark_is_found_in_what_limactl_prints(state: str) -> None:
    (instance,) = decode_instances((DATA / f"list-{state}.json").read_text())
    mark = owner_mark(instance, MARK_PATH)
    assert mark is not None
    assert (mark.version, mark.source, mark.provisioned) == (template.MARK_VERSION, Source.LOCAL, "image")
    assert len(mark.environment) == len(mark.image) == 64


def test_an_instance_that_others_made_has_no_mark() -> None:
    (garbled,) = decode_instances((DATA / "list-garbled.json").read_text())
    assert owner_mark(garbled, MARK_PATH) is None
    assert owner_mark(marked(msgspec.json.encode(MARK).decode(), "/etc/other.json"), MARK_PATH) is None


@pytest.mark.parametrize("content", ["", "{}", "[]", "not json", '{"version": "one"}'])
def test_a_mark_that_cannot_be_read_is_refused(content: str) -> None:
    with pytest.raises(InstanceError, match="was made by another version of lima-kernels"):
        owner_mark(marked(content), MARK_PATH)


def test_a_mark_of_another_version_is_refused() -> None:
    later = msgspec.structs.replace(MARK, version=template.MARK_VERSION + 1)
    with pytest.raises(InstanceError, match="was made by another version of lima-kernels"):
        owner_mark(marked(msgspec.json.encode(later).decode()), MARK_PATH)


def test_a_mark_with_more_fields_is_still_ours() -> None:
    later = {**msgspec.to_builtins(MARK), "more": [1]}
    assert owner_mark(marked(msgspec.json.encode(later).decode()), MARK_PATH) == MARK


def test_ports_that_were_asked_for_come_before_all_others() -> None:
    asked, theirs = {"guestPort": 8080, "hostPort": 8080}, {"guestPort": 1}
    config = EMPTY._replace(port_forwards=[asked])
    rules = rendered(config, yaml.safe_dump({"portForwards": [theirs]}))["portForwards"]
    assert rules[:2] == [asked, theirs]
    assert {rule.get("proto") for rule in rules[2:] if rule["ignore"]} == {"tcp", "udp"}


def test_the_architecture_is_said_when_it_was_asked_for() -> None:
    assert rendered(EMPTY._replace(arch="aarch64"))["arch"] == "aarch64"
    assert "arch" not in rendered(EMPTY)


def test_a_file_has_the_owner_and_permissions_that_were_asked_for() -> None:
    file = GuestFile("{{.Home}}/a", "", "0600", "{{.User}}")
    assert rendered(EMPTY._replace(files=[file]))["provision"] == [
        {"mode": "data", "path": "{{.Home}}/a", "content": "", "permissions": "0600", "owner": "{{.User}}"}
    ]


def test_what_lima_would_take_for_a_template_is_written_so_that_it_does_not() -> None:
    assert template.literal("a {{ b }} {{{{") == 'a {{"{{"}} b }} {{"{{"}}{{"{{"}}'
    assert template.literal("plain { } }}") == "plain { } }}"


def test_a_mark_of_before_images_had_digests_is_read() -> None:
    older = {key: value for key, value in msgspec.to_builtins(MARK).items() if key != "image_sha256"}
    mark = owner_mark(marked(msgspec.json.encode(older).decode()), MARK_PATH)
    assert mark is not None
    assert mark.image_sha256 == ""
