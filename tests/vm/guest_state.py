"""What a guest has become of what Lima asked for, as JSON: run as root by its own Python, with a user's name as $1."""

import grp
import json
import os
import pwd
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path


def said(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60).stdout.strip()


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode)) + " " + path.owner()


def text(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else "missing"


def mounts() -> "list[list[object]]":
    found = []
    for line in text("/proc/mounts").splitlines():
        _, point, kind, options, *_ = line.split()
        if kind in ("9p", "virtiofs", "iso9660"):
            kept = [word for word in options.split(",") if re.match(r"(ro|rw|trans|version|msize|cache)\b", word)]
            found.append([point, kind, sorted(kept)])
    return sorted(found)


def main() -> None:
    name = sys.argv[1]
    user = pwd.getpwnam(name)
    home = Path(user.pw_dir)
    keys = home / ".ssh" / "authorized_keys"
    shadow = next(line for line in text("/etc/shadow").splitlines() if line.startswith(name + ":"))
    ours = re.search(r"#LIMA-START.*#LIMA-END", text("/etc/environment"), re.DOTALL)
    root = os.statvfs("/")
    device = next(line.split()[0] for line in text("/proc/mounts").splitlines() if line.split()[1] == "/")
    size = int(said("blockdev", "--getsize64", os.path.realpath(device)))
    addresses = json.loads(said("ip", "-json", "-4", "address"))
    print(
        json.dumps(
            {
                "user": list(user[2:]),
                "groups": sorted(group.gr_name for group in grp.getgrall() if name in group.gr_mem),
                "sudo": "NOPASSWD: ALL" in said("sudo", "-l", "-U", name),
                "password is locked": shadow.split(":")[1][:1] in "!*",
                "keys": sorted(line for line in keys.read_text().splitlines() if line),
                "modes": [mode(path) for path in (home, keys.parent, keys)],
                "name": socket.gethostname(),
                "knows its name": socket.gethostbyname(socket.gethostname()).startswith("127."),
                "mounts": mounts(),
                "fstab": sorted(
                    line.split()[1] for line in text("/etc/fstab").splitlines() if line.split()[2:3] == ["9p"]
                ),
                "environment": ours and ours[0],
                "time zone": os.path.realpath("/etc/localtime"),
                "trusted": text("/etc/ssl/certs/ca-certificates.crt").count(sys.argv[2]),
                "addresses": [[link["ifname"], link["addr_info"][0]["local"]] for link in addresses],
                "routes": sorted(
                    [route["dst"], route["dev"], route.get("metric", 0)]
                    for route in json.loads(said("ip", "-json", "-4", "route"))
                    # Those to single hosts of the network itself say nothing more.
                    if route["dst"] == "default" or "/" in route["dst"]
                ),
                "name servers": sorted(set(re.findall(r"\d+\.\d+\.\d+\.\d+", said("resolvectl", "dns", "eth0")))),
                "file": [text("/etc/of-the-test"), mode(Path("/etc/of-the-test"))],
                "scripts": [text("/var/of-root"), text(f"{home}/of-user"), text("/var/of-dependency")],
                "boot script": mode(Path("/var/lib/cloud/scripts/per-boot/00-lima.boot.sh")),
                "guest agent": said("systemctl", "is-active", "lima-guestagent.service"),
                "done": [os.path.exists("/run/lima-boot-done"), os.path.exists("/run/lima-ssh-ready")],
                "fills its disk": root.f_blocks * root.f_frsize > 0.9 * size,
                "failed": said("systemctl", "list-units", "--failed", "--plain", "--no-legend"),
                "kept": [text("/etc/machine-id"), said("sha256sum", "/etc/ssh/ssh_host_ed25519_key.pub").split()[0]],
            }
        )
    )


main()
