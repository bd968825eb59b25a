"""Which of the host's certificate authorities a guest has to be told of."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from lima_kernels.environment import certificates
from lima_kernels.environment.certificates import host_certificates


def pem(name: str) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{name * 4}==\n-----END CERTIFICATE-----"


class Host(NamedTuple):
    added: Path
    anchors: Path
    shipped: Path
    bundle: Path


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path / "added", tmp_path / "anchors", tmp_path / "shipped", tmp_path / "bundle.crt")
    for directory in (made.added, made.anchors, made.shipped):
        directory.mkdir()
    monkeypatch.setattr(certificates, "_ADDED", (made.added, made.anchors))
    monkeypatch.setattr(certificates, "_SHIPPED", made.shipped)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.bundle))
    return made


def test_a_plain_host_adds_nothing(host: Host) -> None:
    (host.shipped / "a.crt").write_text(pem("A") + "\n")
    host.bundle.write_text(pem("A") + "\n")
    assert host_certificates() == ()


def test_what_an_administrator_added_is_found_below_both_directories(host: Host) -> None:
    (host.added / "company").mkdir()
    (host.added / "company" / "proxy.crt").write_text(pem("P"))
    (host.anchors / "root.pem").write_text(pem("R"))
    assert host_certificates() == (pem("P"), pem("R"))


def test_only_what_the_distribution_did_not_ship_is_taken_from_the_bundle(host: Host) -> None:
    (host.shipped / "mozilla").mkdir()
    (host.shipped / "mozilla" / "a.crt").write_text(pem("A"))
    host.bundle.write_text(f"# Company\n{pem('C')}\n# A\n{pem('A')}\n")
    assert host_certificates() == (pem("C"),)


def test_the_bundle_is_left_alone_where_nobody_can_tell_what_was_shipped(host: Host) -> None:
    host.shipped.rmdir()
    host.bundle.write_text(pem("A"))
    assert host_certificates() == ()


def test_a_certificate_that_is_found_twice_is_given_once(host: Host) -> None:
    (host.added / "a.crt").write_text(f"{pem('A')}\n{pem('B')}\n")
    (host.anchors / "b.crt").write_text(pem("B"))
    host.bundle.write_text(f"{pem('C')}\n{pem('A')}\n")
    assert host_certificates() == (pem("A"), pem("B"), pem("C"))


def test_windows_line_ends_make_no_other_certificate(host: Host) -> None:
    (host.added / "a.crt").write_bytes(pem("A").replace("\n", "\r\n").encode() + b"\r\n")
    (host.added / "b.crt").write_text(pem("A"))
    assert host_certificates() == (pem("A"),)


def test_the_order_does_not_depend_on_the_directory(host: Host) -> None:
    for name in "CAB":
        (host.added / f"{name}.crt").write_text(pem(name))
    assert host_certificates() == (pem("A"), pem("B"), pem("C"))


def test_keys_and_other_files_are_passed_over(host: Host) -> None:
    (host.added / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n")
    (host.added / "binary.der").write_bytes(bytes(range(256)))
    (host.added / "cut.crt").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n")
    assert host_certificates() == ()


def test_missing_directories_and_bundles_are_no_error(host: Host) -> None:
    host.added.rmdir()
    host.anchors.rmdir()
    assert host_certificates() == ()


def test_a_dangling_link_is_passed_over(host: Host) -> None:
    (host.added / "a.crt").symlink_to(host.added / "gone.crt")
    (host.added / "b.crt").write_text(pem("B"))
    assert host_certificates() == (pem("B"),)
