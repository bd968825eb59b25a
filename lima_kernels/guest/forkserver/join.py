"""What sshfs runs for its SSH: hands the socket that it was given to the forkserver, which has the host carry it.

Run as a program of its own: ``python -I -S join.py SOCKET MOUNT``, and whatever else sshfs would tell ssh.
"""

from __future__ import annotations

import socket
import sys
import time

# Seconds for a forkserver that is just being started anew, and between two looks.
_PATIENCE = 30.0
_INTERVAL = 0.2


def main() -> int:
    """Send standard input, which is the socket, to the forkserver; returns the exit code."""
    path, mount = sys.argv[1:3]
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.connect(path)
                socket.send_fds(sock, [mount.encode()], [0])
            return 0
        except OSError as error:
            if time.monotonic() > end:
                print("the forkserver cannot be reached: %s" % error, file=sys.stderr)
                return 1
            time.sleep(_INTERVAL)


if __name__ == "__main__":
    sys.exit(main())
