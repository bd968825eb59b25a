#!/usr/bin/env python3
"""An executable limactl for tests: instances are directories below LIMA_HOME; it fails, hangs and lies when told to.

Told by ``$LIMA_HOME/_fake.json``, an object with any of: version; ssh_port; status, errors (of every instance); fail,
{verb: message}; hang, [verb]; delay, {verb: seconds} (before it does anything); garbage, [verb]; start_log, [message];
host_agent_pid, driver_pid: processes whose end is that of the instance's (else whoever calls us, who lives);
driver_fails: in how many starts the VM's process ends at once, and what it then says; half_made: what a `create` that
fails leaves, as {file: text}; its own text up to a length for the file lima.yaml; unsupported, [mount type]: what the
template says that its kernel cannot do; vm_type; cannot_remove, [file] of a factory reset; clone_stops_at: the file
before which a `clone` fails or hangs; monitor: what QEMU answers to a snapshot
of a running VM; referred: the download that a `prune --keep-referred` keeps.
A verb can be one of two words, such as "disk create". Others are moments in a verb: "ready" in a start; "prepare" in a
create, when Lima has made the instance and downloads its image; "edit written", when half of a lima.yaml is;
"datadisk" and "kept", when a disk's directory is made, and a snapshot.
Each call is kept as a line of ``$LIMA_HOME/_calls``.
"""

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from fake_lima_base import (
    HOME,
    begin_events,
    describe,
    existing,
    fail,
    hang,
    late,
    log,
    reasons,
    size,
    tell_event,
    told,
)
from fake_lima_storage import disk, prune, snapshot, write_snapshots


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
    late("prepare")
    make_disk(directory)
    log(f"Run `limactl start {name}` to start the instance.")


def make_disk(directory: Path) -> None:
    if not (directory / "disk").exists():
        write_snapshots(directory, [])


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
    make_disk(directory)
    # What the VM's process is started with.
    (directory / "qemu").write_text(os.environ.get("QEMU_SYSTEM_X86_64", ""))
    port = told().get("ssh_port", 1)
    begin_events(directory)
    (directory / "running").touch()
    said = {
        "Hostname": "127.0.0.1",
        "User": os.environ.get("USER", "user"),
        "IdentityFile": HOME / "_config" / "user",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
        "Port": port,
    }
    lines = [f"Host lima-{name}", *(f"  {key} {value}" for key, value in said.items()), ""]
    (directory / "ssh.config").write_text("\n".join(lines))
    tell_event(directory, sshLocalPort=port)
    log(f"SSH Local Port: {port}")
    late("ready")
    tell_event(directory, running=True, sshLocalPort=port)
    log(f"READY. Run `limactl shell {name}` to open the shell.")


def torn(value: Any) -> Any:
    """Return what the real one's formatter makes of strings in single quotes that have several lines."""
    if isinstance(value, dict):
        return {key: torn(each) for key, each in value.items()}
    if isinstance(value, list):
        return [torn(each) for each in value]
    return value.replace("\n", " #magic___^_^___line ") if isinstance(value, str) else value


def edit(name: str, options: list[str]) -> None:
    directory = existing(name)
    if describe(directory)["status"] == "Running":
        fail("cannot edit a running instance")
    (expression,) = (option.removeprefix("--set=") for option in options if option.startswith("--set="))
    text = (directory / "lima.yaml").read_text()
    before = yaml.safe_load(text)
    after = torn(before) if re.search(r": '[^'\n]*\n", text) else dict(before)
    for assignment in expression.split(" | "):
        key, value = re.fullmatch(r"\.(\w+) = (.*)", assignment).groups()
        after[key] = json.loads(value)
    if after == before:
        log("Aborting, no changes made to the instance")
        return
    if size(after.get("disk"), 100 << 30) < size(before.get("disk"), 100 << 30):
        Path("lima.REJECTED.yaml").write_text(yaml.safe_dump(after))
        shrunk = f"field `disk`: shrinking the disk ({before.get('disk')} --> {after.get('disk')}) is not supported"
        fail(f"the YAML is invalid, saved the buffer as `lima.REJECTED.yaml`: {shrunk}")
    # It is not written in one step.
    (directory / "lima.yaml").write_text("")
    late("edit written")
    (directory / "lima.yaml").write_text(yaml.safe_dump(after, sort_keys=False))
    log(f"Instance `{name}` configuration edited")


def factory_reset(name: str) -> None:
    directory = HOME / name
    if not directory.exists():
        log(f"Instance `{name}` not found")
        return
    if (directory / "protected").exists():
        fail("instance is protected to prohibit accidental factory-reset (Hint: use `limactl unprotect`)")
    for file in sorted(directory.iterdir()):
        if file.suffix in (".yaml", ".yml") or file.name in ("lima-version", "protected"):
            continue
        log(f"Removing `{file}`")
        if file.is_dir() or file.name in told().get("cannot_remove", ()):
            log(f"remove {file}: directory not empty", "error")
        else:
            file.unlink()
    log(f"Instance `{name}` has been factory reset")


def clone(source: str, target: str) -> None:
    old, new = existing(source), HOME / target
    if describe(old)["status"] == "Running":
        fail("cannot clone a running instance")
    if new.exists():
        fail(f"instance `{target}` already exists")
    new.mkdir()
    for file in sorted(old.iterdir()):
        if file.name == told().get("clone_stops_at"):
            late("clone")
        if file.is_dir():
            # As Lima does: without any mode, and so it cannot write what should be in it.
            (new / file.name).mkdir(mode=0)
            if inner := next(file.iterdir(), None):
                fail(f"failed to open target {new / file.name / inner.name}: permission denied")
        elif file.suffix not in (".pid", ".sock", ".tmp") and file.name != "protected":
            shutil.copy(file, new / file.name)


def info() -> None:
    print(
        json.dumps({"version": "2.2.0", "limaHome": str(HOME), "vmTypes": ["qemu"], "plugins": None, "hostOS": "linux"})
    )


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
    words = [verb, *(f"{verb} {name}" for name in names[:1] if verb in ("disk", "snapshot"))]
    in_its_middle = verb == "clone" and "clone_stops_at" in told()
    if not in_its_middle and any(word in told().get("hang", ()) for word in words):
        hang()
    time.sleep(told().get("delay", {}).get(verb, 0))
    if verb in told().get("garbage", ()):
        print("<html>this is not what you asked for</html>")
        return
    for word in words:
        if word in told().get("fail", {}) and verb not in ("start", "create") and not in_its_middle:
            fail(told()["fail"][word])
    if verb not in VERBS:
        fail(f"unknown command {verb!r}")
    VERBS[verb](rest, names, options)


def stop(name: str) -> None:
    directory = HOME / name
    if (directory / "running").exists():
        tell_event(directory, exiting=True)
    for file in ("running", "ha.pid", "qemu.pid"):
        (directory / file).unlink(missing_ok=True)


def create_or_list(options: list[str]) -> None:
    if "--list-templates" in options:
        print("debian-12\ndebian-13\nubuntu-24.04")
    else:
        create(next(option.split("=", 1)[1] for option in options if option.startswith("--name=")))


VERBS = {
    "--version": lambda rest, names, options: print(f"limactl version {told().get('version', '2.2.0')}"),
    "list": lambda rest, names, options: list_instances(names),
    "create": lambda rest, names, options: create_or_list(options),
    "start": lambda rest, names, options: start(names[0]),
    "stop": lambda rest, names, options: stop(names[0]),
    "delete": lambda rest, names, options: shutil.rmtree(HOME / names[0], ignore_errors=True),
    "template": lambda rest, names, options: template(rest),
    "edit": lambda rest, names, options: edit(names[0], options),
    "factory-reset": lambda rest, names, options: factory_reset(names[0]),
    "clone": lambda rest, names, options: clone(*names),
    "snapshot": lambda rest, names, options: snapshot(names[0], names[1], options),
    "disk": lambda rest, names, options: disk(names[0], "".join(names[1:]), options),
    "prune": lambda rest, names, options: prune(options),
    "info": lambda rest, names, options: info(),
}

main()
