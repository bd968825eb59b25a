"""What the fake limactl is told, what it says, and how its instances are."""

import json
import os
import re
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import yaml

HOME = Path(os.environ["LIMA_HOME"])


def told() -> dict:
    try:
        return json.loads((HOME / "_fake.json").read_text())
    except FileNotFoundError:
        return {}


def log(message: str, level: str = "info") -> None:
    print(json.dumps({"level": level, "msg": message}), file=sys.stderr, flush=True)


def fail(message: str, code: int = 1) -> None:
    log(message, "fatal")
    sys.exit(code)


def living(pid: int) -> int:
    """The process, or 0 when it has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    return pid


def hang() -> None:
    """Hang until we are ended, or our test is over: a caller that was killed ends nobody."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while HOME.exists():
        time.sleep(0.5)
    sys.exit(1)


def late(moment: str) -> None:
    """Hang or fail in the middle of a verb, if that is told."""
    if moment in told().get("hang", ()):
        hang()
    if moment in told().get("fail", {}):
        fail(told()["fail"][moment])


def size(text: object, otherwise: int) -> int:
    """A size in bytes, of a lima.yaml or a command line."""
    found = re.fullmatch(r"([\d.]+)([KMGT])?(?:i?B)?", str(text))
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")) if found else otherwise


def port_of_last_start(directory: Path) -> int:
    try:
        return int((directory / "ssh.config").read_text().split()[-1])
    except FileNotFoundError:
        return 0


def describe(directory: Path) -> dict:
    try:
        config = yaml.safe_load((directory / "lima.yaml").read_text()) or {}
    except yaml.YAMLError:
        return {"name": directory.name, "status": "", "dir": str(directory), "hostAgentPID": 0, "driverPID": 0}
    running = (directory / "running").exists()
    agent = living(told().get("host_agent_pid", os.getppid())) if running else 0
    driver = living(told().get("driver_pid", os.getppid())) if running else 0
    status = {(True, True): "Running", (False, False): "Stopped"}.get((agent > 0, driver > 0), "Broken")
    user = {"name": os.environ.get("USER", "user"), "home": "/home/user.guest", "uid": os.getuid()}
    config.setdefault("user", {**user, **told().get("user", {})})
    config.setdefault("mountType", "9p")
    return {
        "name": directory.name,
        "status": told().get("status") or status,
        "errors": [{} for _ in reasons(agent, driver)],
        "dir": str(directory),
        "vmType": told().get("vm_type", "qemu"),
        "arch": config.get("arch", "x86_64"),
        "cpus": config.get("cpus", 2),
        "memory": size(config.get("memory"), 4 << 30),
        "disk": size(config.get("disk"), 100 << 30),
        "additionalDisks": [{"name": name} for name in config.get("additionalDisks", [])],
        "protected": (directory / "protected").exists(),
        "limaVersion": "2.2.0",
        # Of a stopped instance too: from the file that the last start wrote.
        "sshLocalPort": told().get("ssh_port", 1) if agent else port_of_last_start(directory),
        "sshAddress": "127.0.0.1",
        "hostAgentPID": agent,
        "driverPID": driver,
        "config": config,
        "aFieldOfTomorrow": {"unknown": None},
    }


def reasons(agent: int, driver: int) -> list[str]:
    if "errors" in told():
        return told()["errors"]
    if driver and not agent:
        return ["qemu driver is running but host agent is not"]
    return ["host agent is running but driver is not"] if agent and not driver else []


def begin_events(directory: Path) -> None:
    """Make what a host agent makes as it begins: the file of its events anew, and the processes' files."""
    (directory / "ha.stdout.log").unlink(missing_ok=True)
    (directory / "ha.stdout.log").touch()
    for file in ("ha.pid", "qemu.pid"):
        (directory / file).write_text(f"{os.getppid()}\n")


def tell_event(directory: Path, **status: object) -> None:
    when = datetime.now(UTC).isoformat()
    with (directory / "ha.stdout.log").open("a") as file:
        file.write(json.dumps({"time": when, "status": status}) + "\n")


def existing(name: str) -> Path:
    directory = HOME / name
    if not (directory / "lima.yaml").exists():
        fail(f"instance `{name}` not found")
    return directory
