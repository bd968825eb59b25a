#!/usr/bin/env python3
"""An executable limactl for tests: instances are directories below LIMA_HOME; it fails, hangs and lies when told to.

Told by ``$LIMA_HOME/_fake.json``, an object with any of: version; ssh_port; status, errors (of every instance); fail,
{verb: message}; hang, [verb]; delay, {verb: seconds} (before it does anything); garbage, [verb]; start_log, [message];
host_agent_pid, driver_pid: processes whose end is that of the instance's (else whoever calls us, who lives);
driver_fails: in how many starts the VM's process ends at once, and what it then says; half_made: what a `create` that
fails leaves, as {file: text}; its own text up to a length for the file lima.yaml; unsupported, [mount type]: what the
template says that its kernel cannot do.
Each call is kept as a line of ``$LIMA_HOME/_calls``.
"""

import json
import os
import re
import shutil
import signal
import sys
import time
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
    config.setdefault("user", {"name": os.environ.get("USER", "user"), "home": "/home/user.guest"})
    config.setdefault("mountType", "9p")
    return {
        "name": directory.name,
        "status": told().get("status") or status,
        "errors": [{} for _ in reasons(agent, driver)],
        "dir": str(directory),
        "vmType": "qemu",
        "arch": "x86_64",
        "cpus": 2,
        "memory": 4 << 30,
        "disk": 100 << 30,
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


def list_instances(names: list[str]) -> None:
    found = [path.parent for path in sorted(HOME.glob("*/lima.yaml"))]
    chosen = [path for path in found if not names or path.name in names]
    for path in chosen:
        instance = describe(path)
        errors = reasons(instance["hostAgentPID"], instance["driverPID"])
        print(json.dumps(instance) + "".join(f"\t{json.dumps(reason)}" for reason in errors))
    if len(chosen) < len(names):
        fail("unmatched instances")


def create(name: str) -> None:
    directory = HOME / name
    if directory.exists():
        fail(f"instance `{name}` already exists (`{directory}`)")
    directory.mkdir(parents=True)
    text = sys.stdin.read()
    if "create" in told().get("fail", {}):
        for file, content in told().get("half_made", {}).items():
            (directory / file).write_text(text[:content] if file == "lima.yaml" else content)
        fail(told()["fail"]["create"])
    (directory / "lima.yaml").write_text(text)
    log(f"Run `limactl start {name}` to start the instance.")


def start(name: str) -> None:
    directory = HOME / name
    (directory / "serial.log").write_text("\x1b[0mLinux booting\r\na last line on the serial console\r\n")
    for message in told().get("start_log", ()):
        log(message, "error")
    if "start" in told().get("fail", {}):
        fail(told()["fail"]["start"])
    times, words = told().get("driver_fails", (0, ""))
    if sum(json.loads(call)[0] == "start" for call in (HOME / "_calls").read_text().splitlines()) <= times:
        lines = [f"qemu[stderr]: qemu-system-x86_64: {words}"] if words else []
        lines.append("Driver stopped due to error: `exit status 1`")
        when = "2026-11-21T14:48:47Z"
        logged = [json.dumps({"level": "info", "msg": line, "time": when}) + "\n" for line in lines]
        (directory / "ha.stderr.log").write_text("".join(logged))
        fail("exiting, status={Running:false Degraded:false Exiting:true}")
    (directory / "running").touch()
    (directory / "ssh.config").write_text(f"Host lima-{name}\n  Port {told().get('ssh_port', 1)}\n")
    log(f"SSH Local Port: {told().get('ssh_port', 1)}")
    if "ready" in told().get("hang", ()):
        hang()
    log(f"READY. Run `limactl shell {name}` to open the shell.")


def hang() -> None:
    """Hang until we are ended, or our test is over: a caller that was killed ends nobody."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while HOME.exists():
        time.sleep(0.5)
    sys.exit(1)


def template(arguments: list[str]) -> None:
    if arguments[0] == "validate":
        if not re.fullmatch(r"[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*", Path(arguments[1]).stem):
            fail(f"filename `{arguments[1]}` is invalid")
        if not yaml.safe_load(Path(arguments[1]).read_text()).get("images"):
            fail("no images")
        return
    name = arguments[2].removeprefix("template:")
    if name != "debian-13":
        fail(f"template `{name}.yaml` not found")
    print('images:\n- location: "https://example.invalid/debian-13.qcow2"\n  arch: x86_64\nmounts:\n- location: "~"')
    print(f"mountTypesUnsupported: {json.dumps(told().get('unsupported', []))}")


def main() -> None:
    HOME.mkdir(exist_ok=True)
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--tty=false", "--log-format=json")]
    with (HOME / "_calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    verb, rest = arguments[0], arguments[1:]
    options = [argument for argument in rest if argument.startswith("--")]
    names = [argument for argument in rest if not argument.startswith("--")]
    if verb in told().get("hang", ()):
        hang()
    time.sleep(told().get("delay", {}).get(verb, 0))
    if verb in told().get("garbage", ()):
        print("<html>this is not what you asked for</html>")
        return
    if verb in told().get("fail", {}) and verb not in ("start", "create"):
        fail(told()["fail"][verb])
    if verb == "--version":
        print(f"limactl version {told().get('version', '2.2.0')}")
    elif verb == "list":
        list_instances(names)
    elif verb == "create" and "--list-templates" in options:
        print("debian-12\ndebian-13\nubuntu-24.04")
    elif verb == "create":
        create(next(option.split("=", 1)[1] for option in options if option.startswith("--name=")))
    elif verb == "start":
        start(names[0])
    elif verb == "stop":
        (HOME / names[0] / "running").unlink(missing_ok=True)
    elif verb == "delete":
        shutil.rmtree(HOME / names[0], ignore_errors=True)
    elif verb == "template":
        template(rest)
    else:
        fail(f"unknown command {verb!r}")


main()
