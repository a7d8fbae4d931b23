"""`agent queue verify` and `agent queue export`: on every state of a queue, without touching it."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from support.damage import DATABASE, LOG, copy, fill, reports, survey, untouched, write
from support.processes import PATIENCE, Line, Product
from support.queues import buried, chunk_of, names

from agent.queue import Change, Chunk
from agent.queue.disk import FORMAT, DiskQueue
from agent.queue.rows import META, seal

if TYPE_CHECKING:
    from pathlib import Path


NOWHERE = "/nonexistent/api.sock"  # no daemon answers here: who asks reads the disk
COMMANDS = [("queue", "verify"), ("queue", "export"), ("status",), ("dead", "list")]
COMMAND = pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
HERE = pytest.mark.parametrize("state", ["closed", "killed"])


def verify(product: Product, *options: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the document of `agent queue verify`."""
    done = product.run("queue", "verify", "--json", *options)
    return done.returncode, json.loads(done.stdout)


def export(product: Product, *options: str) -> tuple[int, list[str], str]:
    """Return the exit code, the external ids and the complaints of `agent queue export`."""
    done = product.run("queue", "export", *options)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, [line["external_id"] for line in lines], done.stderr


def contents(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Return times, modes and bytes of a directory and all that is in it."""
    return {
        str(path.relative_to(directory)): (
            path.stat().st_mtime_ns,
            path.stat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in (directory, *directory.rglob("*"))
    }


def three_chunks(directory: Path, state: str) -> None:
    """Make a queue of five pending events and a dead letter, closed or as a killed daemon leaves it."""
    queue = DiskQueue(directory)
    queue.commit(Change(appends=[chunk_of("a", "b"), chunk_of("bad", "c"), chunk_of("d", "e")]))
    queue.commit(Change(settlements=[buried(2, "bad", rest=chunk_of("c"))]))
    if state == "killed":
        shutil.copytree(directory, directory.with_name("copy"))
    queue.close()
    if state == "killed":
        shutil.rmtree(directory)
        directory.with_name("copy").rename(directory)
    directory.chmod(0o700)


EVENTS = ["a", "b", "c", "d", "e"]


# -- a sound queue -----------------------------------------------------------------------


@HERE
def test_a_sound_queue_is_verified_and_exported(product: Product, state: str) -> None:
    three_chunks(product.queue, state)

    code, found = verify(product)

    assert (code, found["ok"], found["problems"]) == (0, True, [])
    assert (found["chunks"], found["events"], found["dead"]) == (3, 5, 1)
    assert export(product) == (0, EVENTS, "")


@HERE
def test_both_leave_a_queue_without_a_daemon_exactly_as_it_was(product: Product, state: str) -> None:
    three_chunks(product.queue, state)
    before = contents(product.queue)

    for command in COMMANDS:
        assert product.run(*command).returncode == 0

    assert contents(product.queue) == before


def test_verify_tells_people_what_there_is_and_that_all_is_well(product: Product) -> None:
    three_chunks(product.queue, "closed")

    told = product.run("queue", "verify").stdout

    assert f"queue      {product.queue}\n" in told
    assert "pending    5 events in 3 chunks\n" in told
    assert told.endswith("all is as it was written, and the books balance\n")


def test_where_no_queue_is_yet_both_say_so_and_make_none(product: Product) -> None:
    verified = product.run("queue", "verify")

    assert (verified.returncode, "there is none yet" in verified.stdout) == (0, True)
    assert export(product) == (0, [], "")
    assert not product.queue.exists()


def test_a_directory_that_is_named_and_holds_no_queue_is_wrong_usage(product: Product) -> None:
    for verb in ("verify", "export"):
        done = product.run("queue", verb, "--dir", str(product.directory))
        assert done.returncode == 2
        assert "there is none" in done.stderr


def test_an_exported_event_is_the_line_digit_for_digit(product: Product) -> None:
    lines = [b'{"name":"u","x":1.10,"y":100000000000000000000001,"external_id":"%d"}' % n for n in range(3)]
    with closing(DiskQueue(product.queue)) as queue:
        queue.commit(Change(appends=[Chunk(b"\n".join(lines), 3)]))

    assert product.run("queue", "export").stdout.encode() == b"\n".join(lines) + b"\n"


def test_export_writes_to_a_file_for_its_owner_only(product: Product) -> None:
    three_chunks(product.queue, "closed")
    target = product.directory / "events.ndjson"

    done = product.run("queue", "export", str(target))

    assert (done.returncode, done.stdout) == (0, "")
    assert names(target.read_bytes().splitlines()) == EVENTS
    assert target.stat().st_mode & 0o777 == 0o600


def test_export_to_a_place_that_cannot_be_written_is_wrong_usage(product: Product) -> None:
    three_chunks(product.queue, "closed")

    done = product.run("queue", "export", str(product.directory / "missing" / "file"))

    assert done.returncode == 2
    assert "name another file" in done.stderr


def test_what_was_exported_can_be_sent_and_arrives_once(product: Product) -> None:
    three_chunks(product.queue, "closed")
    exported = product.run("queue", "export").stdout
    product.start_emulator()
    product.start_daemon()

    assert product.run("send", stdin=exported).returncode == 0
    assert product.run("flush").returncode == 0

    assert sorted(event["external_id"] for event in product.stored()) == EVENTS


# -- a queue in use ----------------------------------------------------------------------


@pytest.fixture
def live(product: Product) -> Product:
    """A daemon whose server is away, with five events."""
    product.start_daemon()
    line = Line(product.socket)
    line.send(*({"name": "u", "external_customer_id": "c", "external_id": name} for name in EVENTS))
    line.acked(5)
    line.close()
    return product


def test_a_queue_in_use_is_verified_and_exported(live: Product) -> None:
    assert verify(live)[0] == 0
    assert export(live) == (0, EVENTS, "")


def test_verify_tells_which_process_uses_the_queue(live: Product) -> None:
    assert live.daemon is not None
    assert f"in use by process {live.daemon.pid}\n" in live.run("queue", "verify").stdout


_CHANGES = (
    "write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,unlink,unlinkat,rename,renameat,"
    "renameat2,mkdir,mkdirat,chmod,fchmod,fchmodat,chown,fchownat,utimensat"
)
# What would keep a writer out, or change something: a lock of a writer, memory that is written to a
# file. (SQLite opens the log for writing whatever it is told, and as root gives it to its owner.)
_HINDERS = re.compile(r"F_WRLCK|LOCK_EX|PROT_WRITE|O_TRUNC")
_OPENED = re.compile(r'open(?:at)?\([^"]*"([^"]*)", (O_[A-Z]+)')


def recorded(product: Product, command: tuple[str, ...]) -> list[str]:
    """Run a command; return its system calls about the queue that open, lock or change something."""
    output = product.directory / "trace"
    recorder = f"strace -f -y -e trace=open,openat,creat,fcntl,flock,mmap,{_CHANGES} -o {output} --".split()
    product.set(api_socket_path=NOWHERE)
    done = subprocess.run(
        [*recorder, sys.executable, "-m", "agent", *command],
        env=product.environ,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    calls = output.read_text().splitlines()
    return [call for call in calls if str(product.queue) in call and " = -1 E" not in call]


@pytest.mark.needs("strace")
@COMMAND
@pytest.mark.parametrize("state", ["live", "killed", "closed"])
def test_who_looks_writes_nothing_and_takes_no_lock_that_keeps_a_writer_out(
    product: Product, command: tuple[str, ...], state: str
) -> None:
    if state == "live":
        product.start_daemon()
        line = Line(product.socket)
        line.send({"name": "u", "external_customer_id": "c"})
        line.acked(1)
        line.close()
    else:
        three_chunks(product.queue, state)

    calls = recorded(product, command)

    opened = [_OPENED.findall(call)[0] for call in calls if _OPENED.search(call)]
    assert any(path.endswith(DATABASE) for path, _ in opened), "it did not look at all"
    assert {how for path, how in opened if not path.endswith(LOG)} == {"O_RDONLY"}
    assert not [call for call in calls if re.search(rf"\b({_CHANGES.replace(',', '|')})\(", call)]
    assert not [call for call in calls if _HINDERS.search(call)]


def test_commits_go_on_while_somebody_reads_slowly(product: Product) -> None:
    with closing(DiskQueue(product.queue)) as queue:
        queue.commit(Change(appends=[chunk_of(f"a{n}", filler=60_000) for n in range(100)]))
    product.start_daemon()
    # It writes more than a pipe holds, and nobody takes it.
    reader = product.spawn("queue", "export", stdout=subprocess.PIPE)
    assert reader.stdout is not None
    assert reader.stdout.read(1) == "{"
    line = Line(product.socket)

    for number in range(1000):
        line.send({"name": "u", "external_customer_id": "c", "metadata": {"filler": f"{number}" * 120}})
        line.acked(number + 1)
    line.close()

    log = product.queue / LOG
    assert log.stat().st_size < 6 << 20, "the log could not be used anew while somebody read"
    rest = reader.stdout.read()
    assert reader.wait(PATIENCE) == 0
    assert rest.count("\n") == 100


# -- a damaged queue ---------------------------------------------------------------------


@pytest.fixture(params=["closed", "killed"])
def whole(request: pytest.FixtureRequest, product: Product) -> dict[int, list[bytes]]:
    """A queue of many chunks, in which the page of the books and the next ones are zeros; those not hit."""
    queue, truth = fill(product.directory / "live", random.Random(3), commits=12)
    if request.param == "closed":
        queue.close()
    copy(product.directory / "live", product.queue)
    queue.close()
    survey(product.queue, truth)
    (name, start, _), *_ = truth.places["books"]
    hits = [write(product.queue / name, start // 4096 * 4096, bytes(3 * 4096))]
    left = untouched(truth, hits)
    return {key: lines for key, lines in truth.chunks.items() if key in left}


@pytest.mark.usefixtures("whole")
def test_damage_is_found_and_named(product: Product) -> None:
    code, found = verify(product)

    assert (code, found["ok"]) == (1, False)
    assert found["problems"]
    told = product.run("queue", "verify")
    assert told.returncode == 1
    assert all(f"DAMAGED    {problem}\n" in told.stdout for problem in found["problems"])


def test_every_chunk_that_was_not_hit_is_exported(product: Product, whole: dict[int, list[bytes]]) -> None:
    done = product.run("queue", "export")

    lines = set(done.stdout.encode().splitlines())
    assert (done.returncode, bool(done.stderr)) == (1, True)
    assert whole
    assert all(set(wanted) <= lines for wanted in whole.values())


@pytest.mark.usefixtures("whole")
def test_both_leave_a_damaged_queue_exactly_as_it_was(product: Product) -> None:
    before = contents(product.queue)

    verify(product)
    export(product)

    assert contents(product.queue) == before


def test_looking_at_a_cut_log_does_not_hide_from_the_daemon_that_it_is_cut(product: Product) -> None:
    three_chunks(product.queue, "killed")
    log = product.queue / LOG
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - 3 * 4120)
    for command in COMMANDS:
        product.run(*command)
    code, found = verify(product)
    assert (code, any(LOG in problem for problem in found["problems"])) == (1, True)

    with closing(DiskQueue(product.queue)):
        pass

    (report,) = reports(product.queue)
    assert LOG in json.loads(report.read_text())["found"]


@pytest.mark.usefixtures("whole")
def test_a_quarantine_can_be_verified_and_exported_and_is_left_as_it_is(product: Product) -> None:
    wanted = export(product)
    with closing(DiskQueue(product.queue)):
        pass
    (report,) = reports(product.queue)
    before = contents(report.parent)

    assert verify(product, "--dir", str(report.parent))[0] == 1
    assert export(product, "--dir", str(report.parent))[:2] == wanted[:2]

    assert contents(report.parent) == before


@pytest.mark.usefixtures("whole")
def test_verify_names_what_was_set_aside_before(product: Product) -> None:
    with closing(DiskQueue(product.queue)) as queue:
        lost = queue.books().lost
    (report,) = reports(product.queue)

    code, found = verify(product)

    assert (code, found["lost"]) == (0, lost)
    (quarantine,) = found["quarantines"]
    assert quarantine["path"] == str(report.parent)
    assert quarantine["lost"] == lost
    assert f"set aside  {report.parent}" in product.run("queue", "verify").stdout


def test_a_damaged_queue_in_use_is_verified_and_exported(live: Product) -> None:
    assert live.daemon is not None
    live.daemon.send_signal(signal.SIGSTOP)  # else it may mend the damage before it is looked at
    with (live.queue / LOG).open("r+b") as file:
        size = (live.queue / LOG).stat().st_size
        file.seek(size - 4096)
        file.write(bytes(4096))

    verified, exported = verify(live), export(live)

    live.daemon.send_signal(signal.SIGCONT)
    assert (verified[0], exported[0]) == (1, 1)
    assert set(exported[1]) <= set(EVENTS)


@pytest.mark.parametrize("share", [0, 0.01, 0.4, 0.9])
@pytest.mark.parametrize("name", [DATABASE, LOG])
def test_a_queue_that_is_cut_anywhere_is_told_and_left_as_it_is(
    product: Product, name: str, share: float
) -> None:
    """Even from an empty database: SQLite would delete its log, though it only reads."""
    three_chunks(product.queue, "killed")
    with (product.queue / name).open("r+b") as file:
        file.truncate(int((product.queue / name).stat().st_size * share))
    before = contents(product.queue)

    code, found = verify(product)
    exported = export(product)

    if name == LOG:
        assert (code, bool(found["problems"]), exported[0]) == (1, True, 1)
        assert set(exported[1]) <= {*EVENTS, "bad"}
    else:  # the log has all of it
        assert exported[0] == code
        assert code == 1 or share
        assert exported[1] == EVENTS
    assert contents(product.queue) == before


# -- a newer format ----------------------------------------------------------------------


class Newer(msgspec.Struct):
    """What a later version may note of a queue."""

    format: int
    server: str = ""
    more: list[int] = []


def test_a_newer_format_is_refused_by_whoever_reads_or_writes(product: Product) -> None:
    three_chunks(product.queue, "closed")
    newer = seal(META, Newer(format=FORMAT + 1))
    with closing(sqlite3.connect(product.queue / DATABASE)) as db, db:
        db.execute("UPDATE Cache SET value = ? WHERE key = ?", (newer, META))
    before = contents(product.queue)

    for command in (*COMMANDS, ("run",), ("flush",)):
        done = product.run(*command)
        assert done.returncode == 1, done.stdout
        assert f"newer version (format {FORMAT + 1}; this one reads up to {FORMAT})" in done.stderr

    assert {name: was for name, was in contents(product.queue).items() if name.startswith(DATABASE)} == {
        name: was for name, was in before.items() if name.startswith(DATABASE)
    }
