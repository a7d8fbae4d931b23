"""Identity, ids, blocks and recognition of tailed files: pure functions."""

from __future__ import annotations

import zlib
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.queues import checkpoint_of
from support.tails import Desk, line

from agent.event import Checker
from agent.seen import Seen
from agent.stamp import cut
from agent.tail import Table, identity
from agent.tail.block import Kind, advance, next_block, pieces
from agent.tail.glob import excluder, find
from agent.tail.identity import HEAD_BYTES
from agent.tail.known import KnownFiles
from agent.tail.recognition import Act, Bytes, Known, Newcomer, State, recognise
from agent.tail.taking import Place, Taking

if TYPE_CHECKING:
    from agent.queue import Checkpoint

PLACE = Place("00112233445566aa-0", "/var/log/app.log", 0, 0)


def take(block: bytes, *, defaults: dict | None = None, most: int = 1000, place: Place = PLACE):
    taking = Taking(Checker(max_line_bytes=most), Table("/x", defaults=defaults or {}))
    return taking.take(place, block.removesuffix(b"\n"), Seen(), now=1.8e9, wall=1.8e9)


def events(taken) -> list[dict]:
    lines = b"\n".join(lines for lines, _ in taken.groups)
    return [msgspec.json.decode(one) for one in lines.split(b"\n")] if lines else []


# -- the contract of ids: what is here must hold for ever ------------------------------------


def test_the_id_of_a_line_is_that_of_version_1_of_the_contract() -> None:
    first = b'{"name":"a","external_customer_id":"c"}'
    fingerprint = blake2b(first, digest_size=8).hexdigest()
    assert identity.fingerprint(first + b"\nmore") == fingerprint == "507cf709faf682f8"

    taken = take(first + b"\n" + first + b"\n", place=Place(f"{fingerprint}-0", "/x", 0, 0))

    assert [event["external_id"] for event in events(taken)] == [
        f"t1-{fingerprint}-0-0-{zlib.crc32(first):08x}",
        f"t1-{fingerprint}-0-{len(first) + 1}-{zlib.crc32(first):08x}",
    ]


@given(
    st.lists(st.binary(max_size=9).map(lambda text: b"{%b}" % text.replace(b"\n", b"")), min_size=1),
    st.integers(0, 2**50),
)
def test_the_ids_of_many_lines_are_those_of_each(lines: list[bytes], offset: int) -> None:
    whole = cut(b"\n".join(lines))
    assert whole is not None

    offsets = [offset + len(b"".join(lines[:place])) + place for place in range(len(lines))]
    assert identity.line_ids("00112233445566aa-0", offset, whole).each() == [
        identity.line_id("00112233445566aa-0", *one) for one in zip(offsets, lines, strict=True)
    ]


def test_blanks_and_a_byte_order_mark_change_no_content() -> None:
    text = line("a")[:-1]
    plain, odd = take(text + b"\n"), take(identity.BOM + b" " + text + b" \r\n")

    assert events(plain)[0]["external_id"] == events(odd)[0]["external_id"]


@given(
    st.lists(
        st.sampled_from([line("a"), line("b", x="ü"), b"\n", b" \r\n", line("c")[:-1] + b"\r\n"]), max_size=9
    )
)
def test_ids_do_not_depend_on_where_blocks_are_cut(lines: list[bytes]) -> None:
    whole = [event["external_id"] for event in events(take(b"".join(lines)))]
    offset, single = 0, []
    for one in lines:
        single += [event["external_id"] for event in events(take(one, place=PLACE._replace(offset=offset)))]
        offset += len(one)

    assert single == whole


def test_an_id_of_the_line_itself_stays() -> None:
    assert events(take(line("a", external_id="mine")))[0]["external_id"] == "mine"
    assert events(take(line("a", external_id="")))[0]["external_id"].startswith("t1-")


# -- taking ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (b"nonsense", "json_invalid"),
        (b'{"name":"x"}', "missing"),
        (b"\xff\xfe", "json_invalid"),
        (line("a", pad="x" * 2000)[:-1], "too_long"),
        (b'{"name":"a\\u0000","external_customer_id":"c"}', "invalid_characters"),
    ],
)
def test_a_refused_line_is_a_letter_with_its_place(bad: bytes, kind: str) -> None:
    taken = take(line("a") + b"\n" + bad + b"\n" + line("b"))

    (letter,) = taken.letters
    assert letter.errors[0]["type"] == kind
    assert (letter.path, letter.line, letter.offset) == ("/var/log/app.log", 3, len(line("a")) + 1)
    assert [event["name"] for event in events(taken)] == ["a", "b"]
    assert taken.lines == 4


def test_defaults_change_no_id_of_many_lines() -> None:
    lines = [line(number, metadata={"k": number}) for number in range(5)]

    taken = take(b"".join(lines), defaults={"name": "d", "metadata": {"region": "eu"}})

    assert [event["metadata"]["region"] for event in events(taken)] == ["eu"] * 5
    assert [event["external_id"] for event in events(taken)] == [
        identity.line_id(PLACE.identity, len(b"".join(lines[:place])), one.strip()).decode()
        for place, one in enumerate(lines)
    ]


def test_defaults_fill_in_what_a_line_lacks_and_nothing_else() -> None:
    defaults = {"name": "d", "external_customer_id": "dc", "metadata": {"region": "eu", "n": 1}}
    taken = take(
        b'{"metadata":{"n":1.10},"x":1}\n{"name":"own","customer_id":"6a1f1c4e-94b9-4d0b-9f3a-0a5d1f6f7a11"}\n',
        defaults=defaults,
    )

    first, second = events(taken)
    assert (first["name"], first["external_customer_id"], first["metadata"]) == (
        "d",
        "dc",
        {"region": "eu", "n": 1.1},
    )
    assert b'"n":1.10' in taken.groups[0][0]
    assert second["name"] == "own"
    assert "external_customer_id" not in second


# -- blocks ------------------------------------------------------------------------------------


def unread(text: bytes) -> Checkpoint:
    """Return the checkpoint of a file with this text of which nothing was read yet."""
    return checkpoint_of(f"{identity.fingerprint(text, whole=True)}-0")


def test_a_line_without_its_newline_is_held_and_taken_when_nothing_will_follow() -> None:
    at = unread(b'{"a')

    assert next_block(at, b"", b'{"a', 100).kind is Kind.PARTIAL
    assert next_block(at, b"", b'{"a', 100, final=True).kind is Kind.LINES


def test_a_line_that_is_too_long_is_passed_over_up_to_its_newline() -> None:
    at = unread(b"x" * 200)
    block = next_block(at, b"", b"x" * 200, 100)
    assert block.kind is Kind.TOO_LONG
    after = msgspec.structs.replace(advance(at, block, b"x" * 200, lines=0), skipping=True)

    block = next_block(after, b"x" * after.tail_bytes, b"xx\nnext\n", 100)

    assert (block.kind, block.data, block.ended) == (Kind.SKIPPED, b"xx\n", True)


@given(
    st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"")), min_size=1), st.integers(1, 20)
)
def test_pieces_of_lines_are_whole_lines_and_no_longer_than_they_have_to_be(
    lines: list[bytes], size: int
) -> None:
    text = b"\n".join(lines)
    found = list(pieces(text, size))

    assert b"\n".join(piece for _, piece in found) == text
    assert all(text[start:].startswith(piece) for start, piece in found)
    assert all(len(piece.rpartition(b"\n")[0]) <= size for _, piece in found)


def test_no_more_is_read_than_a_bound_while_nothing_is_written(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.tail.reading._MOST_IN_FLIGHT", 100)
    desk = Desk(tmp_path, max_line_bytes=50, block_bytes=1)
    (tmp_path / "log").write_bytes(line("a") * 100)
    for _ in range(20):
        desk.look()
    (file,) = desk.tail.status()["files"]
    assert 100 < file["offset"] < 300

    desk.settle(10)

    assert len(desk.names()) == 100
    desk.close()


@pytest.mark.parametrize("data", [b"", b"one", b"one\ntwX\n", b"XXX\ntwo\nthree\n"])
def test_a_file_that_is_shorter_or_other_than_it_was_has_changed(data: bytes) -> None:
    text = b"one\ntwo\n"
    at = advance(unread(text), next_block(unread(text), b"", text, 100), text, lines=2)

    block = next_block(at, text, b"three\nfo", 100)
    assert (block.data, block.size) == (b"three", len(b"three\n"))
    assert next_block(at, data[: len(text)], data[len(text) :], 100).kind is Kind.CHANGED


@pytest.mark.parametrize("data", [b"", b"on", b"two\none\n"])
def test_a_file_that_begins_otherwise_than_it_did_has_changed_before_anything_was_read(data: bytes) -> None:
    at = unread(b"one\ntwo\n")

    assert next_block(at, b"", b"one\ntwo\nthree\n", 100).kind is Kind.LINES
    assert next_block(at, b"", data, 100).kind is Kind.CHANGED


# -- recognition: the table, row by row -----------------------------------------------------

F = "00112233445566aa"


@pytest.mark.parametrize(
    ("inode", "path", "state", "bytes_", "telling", "expected"),
    [
        (2, "/l/app.log", State.GONE, Bytes.SAME, False, Act.READ_ON),
        (2, "/l/app.log", State.GONE, Bytes.OTHER, True, Act.BEGIN),
        (2, "/l/app.log", State.CUT, Bytes.SAME, False, Act.BEGIN),
        (9, "/l/other", State.LIVE, Bytes.SAME, True, Act.LEAVE),
        (9, "/l/other", State.GONE, Bytes.SAME, True, Act.READ_ON),
        (9, "/l/other", State.CUT, Bytes.SAME, True, Act.READ_ON),
        (9, "/l/other", State.LIVE, Bytes.SHORTER, True, Act.LEAVE),
        (9, "/l/other", State.CUT, Bytes.SHORTER, True, Act.LEAVE),
        (9, "/l/other", State.GONE, Bytes.SHORTER, True, Act.READ_AGAIN),
        (9, "/l/app.log.1", State.CUT, Bytes.SAME, False, Act.READ_ON),
        (9, "/l/app.log.1", State.LIVE, Bytes.SAME, False, Act.WAIT),
        (9, "/l/app.log.1", State.GONE, Bytes.SAME, False, Act.BEGIN),
        (9, "/l/app.log", State.GONE, Bytes.SAME, False, Act.BEGIN),
        (9, "/l/other", State.LIVE, Bytes.SAME, False, Act.BEGIN),
    ],
)
def test_what_a_newcomer_is(  # noqa: PLR0917  # a row of the table
    inode: int, path: str, state: State, bytes_: Bytes, telling: bool, expected: Act
) -> None:
    known = Known(checkpoint_of(f"{F}-0", path="/l/app.log"), state, bytes_, telling=telling)

    decision = recognise(Newcomer(path, 1, inode, F), [known], [f"{F}-0"])

    assert decision.act is expected
    assert decision.identity == (f"{F}-1" if expected is Act.BEGIN else f"{F}-0")


def test_a_place_is_known_since_its_first_look_whenever_lines_were_taken() -> None:
    known = KnownFiles([checkpoint_of("a-0", path="/x", since=10.0, last_line_at=50.0)], lambda _: None)
    known.put(checkpoint_of("b-0", path="/x", since=10.0, last_line_at=90.0))

    assert known.since("/x") == 10.0
    assert known.since("/y") is None


def test_what_is_forgotten_is_not_taken_for_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.tail.known.MOST", 1)
    old = checkpoint_of("a-0", path="/x", since=10.0, last_line_at=50.0, done=True)
    known = KnownFiles([old], lambda _: None)
    known.put(checkpoint_of("b-0", path="/x", since=10.0, last_line_at=90.0))

    assert known.superfluous() == ["a-0"]
    known.put(checkpoint_of("b-0", path="/x", since=10.0, last_line_at=95.0))

    assert known.since("/x") == 50.0


def test_a_compressed_file_whose_original_is_gone_is_that_file() -> None:
    known = Known(checkpoint_of(f"{F}-0", path="/l/app.log.1"), State.GONE, Bytes.SAME)

    assert recognise(Newcomer("/l/app.log.1.gz", 1, 9, F, compressed=True), [known], []).act is Act.READ_ON


@pytest.mark.parametrize(
    ("path", "original", "expected"),
    [
        ("/l/app.log.1", "/l/app.log", True),
        ("/l/app.log.2.gz", "/l/app.log", True),
        ("/l/app.log-20261124", "/l/app.log", True),
        ("/l/app-20261124.log", "/l/app.log", True),
        ("/l/0.log.20261124-101010", "/l/0.log", True),
        ("/l/app-1.log", "/l/app.log", False),
        ("/l/worker-2.log", "/l/worker-1.log", False),
        ("/m/app.log.1", "/l/app.log", False),
        ("/l/app.log", "/l/app.log", False),
    ],
)
def test_names_that_rotation_gives(path: str, original: str, expected: bool) -> None:
    assert identity.comes_of(path, original) is expected


# -- patterns ----------------------------------------------------------------------------------


def test_patterns_find_what_a_shell_finds(tmp_path) -> None:
    for name in ("a.log", "b.txt", ".hidden.log", "x/c.log", "x/y/d.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "x" / "loop").symlink_to(tmp_path)

    def names(pattern: str) -> set[str]:
        return {path.removeprefix(f"{tmp_path}/") for path in find(f"{tmp_path}/{pattern}").paths}

    assert names("*.log") == {"a.log"}
    assert names("**/*.log") == {"a.log", "x/c.log", "x/y/d.log"}
    assert names("x/[cd].log") == {"x/c.log"}
    assert find(f"{tmp_path}/none/*.log").problems == {f"{tmp_path}/none": "no such directory"}


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.gz", "/l/x/a.gz", True),
        ("/l/**/a.*", "/l/a.gz", True),
        ("/l/*", "/l/x/a.gz", False),
        ("x/*", "/l/x/a.gz", True),
    ],
)
def test_exclusion(pattern: str, path: str, expected: bool) -> None:
    assert excluder([pattern])(path) is expected


class Packed:
    """A compressed file that tells how far it was read."""

    compressed = True
    place = 0

    def __init__(self, data: bytes, told: int) -> None:
        self.data = data
        self.told = told
        self.read_up_to = 0

    def read(self, offset: int, length: int) -> bytes:
        self.read_up_to = max(self.read_up_to, offset + length)
        return self.data[offset : offset + length]

    def told_length(self) -> int:
        return self.told


@pytest.mark.parametrize("told", [0, 1])
def test_of_a_compressed_file_that_is_known_and_done_only_the_beginning_is_read(told: int) -> None:
    data = b"".join(line(number, timestamp="2026-01-01T00:00:00Z") for number in range(1000))
    at = advance(unread(data), next_block(unread(data), b"", data, 100), data[:HEAD_BYTES], lines=1000)
    known = KnownFiles([msgspec.structs.replace(at, done=True)], lambda _: None)
    file = Packed(data, len(data) + told)

    decision = known.meet("/l/app.log.1.gz", (1, 9), file, settled=True, whole=False)  # type: ignore[arg-type]

    assert decision is not None
    assert decision.act is Act.READ_ON
    assert (file.read_up_to <= HEAD_BYTES) == (not told), "if it says another length, its end is looked at"
