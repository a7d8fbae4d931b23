"""Asks the daemon how it is, for the probes of containers: `python -m agent.probe [readyz|healthz]`.

`agent status` tells more and takes ten times as long: this loads nothing but what it needs.
Exit code 0: it is well; 1: it is not, or there is none; the answer goes to standard output.
"""

from __future__ import annotations

import os
import socket
import sys

SOCKET = "/run/polar-agent/api.sock"
_SECONDS = 5.0


def ask(path: str, what: str) -> tuple[bool, str]:
    """Return whether the daemon is well, and what it says.

    Args:
        path: the socket of its local API.
        what: `readyz`: it can make events durable; `healthz`: it lives.
    """
    request = f"GET /{what} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_SECONDS)
            sock.connect(path)
            sock.sendall(request.encode())
            answer = b"".join(iter(lambda: sock.recv(4096), b""))
    except OSError as error:
        return False, f"{path}: {error}"
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b" ")[1:2] == [b"200"], body.decode(errors="replace").strip()


def main() -> int:
    """Ask, and say what the answer was."""
    what = sys.argv[1] if len(sys.argv) > 1 else "readyz"
    well, said = ask(os.environ.get("POLAR_AGENT_API_SOCKET_PATH", SOCKET), what)
    sys.stdout.write(f"{said}\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
