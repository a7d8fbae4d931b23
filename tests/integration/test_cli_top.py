"""`agent top` under a pseudo-terminal, as over ssh."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest
from support.http import Caller
from support.processes import Line, Product, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD = {"name": "usage", "external_customer_id": "c"}
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    """A program in a terminal of 80 columns and 24 lines."""

    def __init__(self, product: Product, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self.resize(80, 24)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**product.environ, "TERM": "xterm"},
            start_new_session=True,
        )
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        self.output = b""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("4H", height, width, 0, 0))

    def read(self) -> None:
        """Take what has been written."""
        while select.select([self._ours], [], [], 0.01)[0]:
            self.output += os.read(self._ours, 65536)

    def wait_for(self, pattern: str) -> None:
        def there() -> object:
            self.read()
            return re.search(pattern.encode(), self.output)

        wait_until(there, what=pattern)

    def screen(self) -> list[str]:
        """Return the lines of the last picture."""
        last = self.output.split(b"\x1b[H")[-1].decode()
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last).split("\r\n")

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def ended(self) -> int:
        """Wait for the program's end; return its exit code."""

        def over() -> bool:
            self.read()
            return self.process.poll() is not None

        wait_until(over, what="the end of agent top")
        self.read()
        return self.process.returncode

    def attributes(self) -> list[object]:
        return termios.tcgetattr(self._theirs)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


@pytest.fixture
def terminal(product: Product) -> Iterator[Terminal]:
    product.start_emulator()
    product.start_daemon()
    Caller(product.directory / "api.sock").wait()
    terminal = Terminal(product, "top", "--interval", "200ms")
    terminal.wait_for("q ends it")
    yield terminal
    terminal.close()


def test_it_shows_what_happens_on_80_by_24_and_ends_with_q(product: Product, terminal: Terminal) -> None:
    line = Line(product.socket)
    line.send(*[GOOD] * 1234, {"name": 1})
    line.acked(1235)

    terminal.wait_for(r"delivered +1,234")
    terminal.wait_for("recent refusals")
    screen = terminal.screen()
    assert len(screen) == 24
    assert max(map(len, screen)) <= 80
    assert any("live  ready  delivering" in text for text in screen)
    assert any(re.match(r"socket +1,234", text) for text in screen)
    terminal.type(b"q")

    assert terminal.ended() == 0
    assert terminal.output.count(ENTER) == terminal.output.count(LEAVE) == 1
    assert terminal.attributes() == terminal.before
    line.close()


def test_the_screen_is_written_over_and_never_cleared(terminal: Terminal) -> None:
    pictures = terminal.output.count(b"\x1b[H")
    wait_until(lambda: terminal.read() or terminal.output.count(b"\x1b[H") > pictures + 3)

    assert b"\x1b[2J" not in terminal.output


def test_it_follows_the_size_of_the_window(terminal: Terminal) -> None:
    terminal.resize(60, 12)

    wait_until(lambda: terminal.read() or len(terminal.screen()) == 12)
    assert max(map(len, terminal.screen())) <= 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_terminal_as_it_was(terminal: Terminal, number: int) -> None:
    terminal.process.send_signal(number)

    assert terminal.ended() == 0
    assert terminal.output.count(LEAVE) == 1
    assert terminal.attributes() == terminal.before


def test_it_says_when_the_daemon_is_gone_and_goes_on_when_it_is_back(
    product: Product, terminal: Terminal
) -> None:
    product.stop_daemon()
    terminal.wait_for("does not answer")
    terminal.output = b""

    product.start_daemon()

    terminal.wait_for("live  ready  delivering")


def test_without_a_terminal_it_shows_one_picture(product: Product) -> None:
    product.start_daemon()
    Caller(product.directory / "api.sock").wait()

    done = product.run("top")

    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert re.search(r"accepted +0 +0\n", done.stdout)
    assert json.loads(product.run("top", "--json").stdout)["health"]["live"] is True


def test_without_a_daemon_it_ends_with_1_and_says_what_to_do(product: Product) -> None:
    done = product.run("top")

    assert done.returncode == 1
    assert "agent run" in done.stderr
