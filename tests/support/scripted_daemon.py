"""A daemon that does what a test tells it to: a real Unix socket, one script for each connection."""

import contextlib
import json
import socket
import threading

SECONDS = 20.0
"""How long anything may take before the test fails."""


class Peer:
    """One connection of a producer, from the daemon's side."""

    def __init__(self, connection):
        connection.settimeout(SECONDS)
        self.connection = connection
        self.lines = []
        self.blank = 0
        self.settled = 0
        self._partial = b""

    def receive(self, size=1 << 16):
        """Take what comes; False at the end of the stream."""
        data = self.connection.recv(size)
        *lines, self._partial = (self._partial + data).split(b"\n")
        if not data and self._partial:
            lines.append(self._partial)
        for line in lines:
            if line.strip():
                self.lines.append(line)
            else:
                self.blank += 1
        return bool(data)

    def read(self, count, size=1 << 16):
        """Receive until this many non-blank lines have come; return all there are."""
        while len(self.lines) < count and self.receive(size):
            pass
        return self.lines

    def answer(self, *answers):
        self.connection.sendall(b"".join(json.dumps(answer).encode() + b"\n" for answer in answers))

    def ack(self, count):
        self.settled = count
        self.answer({"ack": count})

    def serve(self, refuse=None):
        """Acknowledge all lines until the stream ends; `refuse` returns an error or None."""
        more = True
        while more:
            more = self.receive()
            for number, line in enumerate(self.lines[self.settled :], self.settled + 1):
                error = refuse and refuse(line)
                if error is not None:
                    self.answer({"line": number, "error": error})
            if len(self.lines) > self.settled:
                self.ack(len(self.lines))


class ScriptedDaemon:
    """Runs one script for each connection, in order, in a thread; `peers` is what they saw."""

    def __init__(self, path, *scripts):
        self.path = path
        self.peers = []
        self._scripts = scripts
        self._listener = None
        self._thread = None
        self._error = None
        self.over = threading.Event()

    def start(self, *_):
        """Listen from now on; may be called by a producer's `on_outage`."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(SECONDS)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, error, trace):
        self.stop(failed=error is not None)

    def stop(self, *, failed=False):
        """Wait until all scripts have run; raise what went wrong in them."""
        if failed:
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(SECONDS)
        self._listener.close()
        if self._error is not None and not failed:
            raise self._error

    def _run(self):
        try:
            for script in self._scripts:
                connection, _ = self._listener.accept()
                with connection:
                    self.peers.append(Peer(connection))
                    script(self.peers[-1])
        except BaseException as error:
            self._error = error
            raise SystemExit from error
        finally:
            self.over.set()


def events(*names):
    return b"".join(b'{"name":"%s"}\n' % name.encode() for name in names)


def names(peer):
    return [json.loads(line)["name"] for line in peer.lines]


def ids(peer):
    return [json.loads(line)["external_id"] for line in peer.lines]
