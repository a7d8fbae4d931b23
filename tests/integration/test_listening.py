"""Listening without stepping on anyone's socket, and what is told when that cannot be."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent.collector import sockets
from agent.collector.sockets import listen, listen_tcp
from agent.errors import AgentError, UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


def stale(path: Path) -> None:
    """Leave the file of a socket that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def refusing(code: int) -> Any:
    """Return a function that the system refuses."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


def test_nobody_may_connect_before_the_socket_has_its_permissions(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[int] = []
    chmod = Path.chmod

    def noted(file: Path, mode: int) -> None:
        before.append(stat.S_IMODE(file.lstat().st_mode))
        chmod(file, mode)

    monkeypatch.setattr(Path, "chmod", noted)

    listen(path, mode=0o666).close()

    assert before == [0o600]


@pytest.mark.timeout(20)
def test_who_is_too_busy_to_answer_is_not_taken_for_dead(path: Path) -> None:
    clients: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        try:
            while True:
                clients.append(socket.socket(socket.AF_UNIX))
                clients[-1].setblocking(False)
                clients[-1].connect(str(path))
        except BlockingIOError:
            pass  # its queue of connections is full
        inode = path.lstat().st_ino

        with pytest.raises(AgentError, match="another process listens there"):
            listen(path, mode=0o660)

        assert path.lstat().st_ino == inode
    for client in clients:
        client.close()


def test_a_socket_that_goes_while_it_is_looked_at_is_in_nobodys_way(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a daemon that is just stopping."""
    stale(path)

    class Gone(socket.socket):
        def connect(self, address: Any) -> None:
            Path(address).unlink()
            super().connect(address)

    monkeypatch.setattr(sockets.socket, "socket", Gone)

    listen(path, mode=0o660).close()

    assert not path.exists()


def test_a_socket_that_another_daemon_has_put_there_meanwhile_stays_when_the_first_one_ends(
    path: Path,
) -> None:
    first = listen(path, mode=0o660)
    path.unlink()
    (path.parent / "takes-the-number").touch()  # the first one's, which may be given to the next file
    with closing(listen(path, mode=0o660)) as second:
        first.close()

        assert path.lstat().st_ino == second.inode


def test_a_socket_whose_file_is_gone_is_closed_all_the_same(path: Path) -> None:
    bound = listen(path, mode=0o660)
    path.unlink()

    bound.close()

    assert bound.sock.fileno() == -1


def test_its_directory_is_made(tmp_path: Path) -> None:
    path = tmp_path / "run" / "polar-agent" / "agent.sock"

    with closing(listen(path, mode=0o660)):
        assert stat.S_IMODE(path.parent.stat().st_mode) & ~0o755 == 0


def test_it_is_given_to_the_user_and_the_group_that_were_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Path, int, int]] = []
    monkeypatch.setattr(os, "chown", lambda *words: given.append(words))

    listen(path, mode=0o660, owner="root", group="7").close()
    listen(path, mode=0o660, group="7").close()

    assert given == [(path, 0, 7), (path, -1, 7)]


@pytest.mark.parametrize(
    ("owner", "group", "hint"),
    [
        ("1", None, "only root may give the socket to another user: leave socket_owner out"),
        (None, "7", "only root or a member of 7 may give the socket to that group"),
    ],
    ids=["a user", "a group"],
)
def test_who_may_not_give_it_away_is_told_what_to_do(
    path: Path, monkeypatch: pytest.MonkeyPatch, owner: str | None, group: str | None, hint: str
) -> None:
    monkeypatch.setattr(os, "chown", refusing(errno.EPERM))

    with pytest.raises(AgentError, match="Operation not permitted") as told:
        listen(path, mode=0o660, owner=owner, group=group)

    assert told.value.hint == hint
    assert not path.exists()


@pytest.mark.parametrize("names", [{"owner": "no-such-user"}, {"group": "no-such-group"}], ids=str)
def test_who_names_nobody_leaves_no_socket_behind(path: Path, names: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="there is no such"):
        listen(path, mode=0o660, **names)

    assert not path.exists()


def test_a_place_where_no_socket_can_be_is_told_with_the_setting(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", refusing(errno.EACCES))

    with pytest.raises(AgentError, match="Permission denied") as told:
        listen(path, mode=0o660)

    assert "socket_path" in told.value.hint


def test_a_path_that_is_too_long_for_a_socket_is_told_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="AF_UNIX path too long") as told:
        listen(tmp_path / ("x" * 120), mode=0o660)

    assert "socket_path" in told.value.hint


# -- for HTTP ----------------------------------------------------------------------------


def test_a_port_can_be_listened_on_again_at_once_after_a_restart() -> None:
    with closing(listen_tcp("127.0.0.1:0")) as first:
        host, port = first.getsockname()
        with socket.create_connection((host, port)):
            first.setblocking(True)
            first.accept()[0].close()  # who closes first has the port in TIME_WAIT

    listen_tcp(f"{host}:{port}").close()


def test_a_port_that_is_in_use_is_told_with_the_setting() -> None:
    with closing(listen_tcp("127.0.0.1:0")) as first:
        host, port = first.getsockname()

        with pytest.raises(AgentError, match="Address already in use") as told:
            listen_tcp(f"{host}:{port}")

    assert "api_listen" in told.value.hint
