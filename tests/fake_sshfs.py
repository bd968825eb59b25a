#!/usr/bin/env python3
"""An executable sshfs for tests, which mounts nothing: it speaks SFTP as the real one does, and reads what it is told.

It runs its ``ssh_command`` for the connection, goes to the background once it is there, and comes again when the
connection ends. ``$HOME/fake-sshfs/<the mount's point, quoted>`` is a unix socket: send it a path, and it answers with
the file's content as an SFTP server gave it. Called as fusermount3 it ends the sshfs of a point.
"""

import os
import socket
import struct
import subprocess
import sys
import urllib.parse
from pathlib import Path

PLACE = Path(os.environ["HOME"]) / "fake-sshfs"


def door(point):
    # As short as can be: a unix socket's path has its limit.
    return PLACE / urllib.parse.quote(point, safe="")[-20:]


class Sftp:
    def __init__(self, command, source):
        self.sock, theirs = socket.socketpair()
        with theirs:
            subprocess.run([*command, "-x", "-a", source.partition(":")[0], "-s", "sftp"], stdin=theirs, check=True)
        self.sock.sendall(struct.pack(">IBI", 5, 1, 3))
        assert self.packet()[0] == 2

    def exactly(self, size):
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise ConnectionError
            data += part
        return data

    def packet(self):
        return self.exactly(struct.unpack(">I", self.exactly(4))[0])

    def ask(self, kind, *parts):
        body = struct.pack(">BI", kind, 1) + b"".join(parts)
        self.sock.sendall(struct.pack(">I", len(body)) + body)
        return self.packet()

    def read(self, path):
        text = path.encode()
        opened = self.ask(3, struct.pack(">I", len(text)), text, struct.pack(">II", 1, 0))
        if opened[0] != 102:
            return b"!" + opened[5:9]
        handle = opened[5:]
        data = self.ask(5, handle, struct.pack(">QI", 0, 65536))
        self.ask(4, handle)
        return data[9:] if data[0] == 103 else b""


def main():
    PLACE.mkdir(exist_ok=True)
    source, point, *options = sys.argv[1:]
    told = dict(option[2:].partition("=")[::2] for option in options)
    (PLACE / "options").write_text(repr(options))
    if (PLACE / "fail").exists():
        print("fuse: device not found, try 'modprobe fuse' first", file=sys.stderr)
        return 1
    command = told["ssh_command"].split(" ")
    # A guest that loses its power now must know afterwards what it has to clean up.
    assert list(Path(command[-2]).parent.glob("*.json")), "the mount is begun before it is written down"
    sftp = Sftp(command, source)
    there_r, there_w = os.pipe()
    if os.fork():
        os.close(there_w)
        os._exit(0 if os.read(there_r, 1) else 1)
    os.setsid()
    for fd in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    path = door(point)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.with_suffix(".pid").write_text(str(os.getpid()))
    listener.listen()
    os.write(there_w, b"1")
    os.close(there_w)
    while True:
        client, _ = listener.accept()
        with client:
            wanted = client.recv(4096).decode()
            try:
                client.sendall(sftp.read(wanted))
            except (ConnectionError, OSError):
                # As with the option `reconnect`: what is under way fails, what comes next does not.
                client.sendall(b"!EIO")
                sftp = Sftp(command, source)


def unmount(point):
    path = door(point)
    os.kill(int(path.with_suffix(".pid").read_text()), 9)
    path.unlink()


if Path(sys.argv[0]).name == "fusermount3":
    unmount(sys.argv[-1])
else:
    sys.exit(main())
