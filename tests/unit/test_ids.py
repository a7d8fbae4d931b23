"""The ids that we give to events: UUIDs of version 7, many from one draw of random bits."""

import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from uuid import RFC_4122, UUID

from hypothesis import given
from hypothesis import strategies as st
from support.clock import NOON

from agent.ids import BLOCK, suffixes, uuid7_block, uuid7_prefix

moments = st.floats(min_value=0, max_value=2**48 / 1000 - 1)


@given(moments, st.binary(min_size=8, max_size=8))
def test_every_id_is_a_uuid_of_version_7_in_its_usual_form(now, random_bytes):
    text = uuid7_prefix(now, random_bytes) + b"0000"

    assert re.fullmatch(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", text)
    assert (UUID(text.decode()).version, UUID(text.decode()).variant) == (7, RFC_4122)


@given(moments, st.binary(min_size=8, max_size=8))
def test_an_id_carries_its_time_to_the_millisecond(now, random_bytes):
    text = uuid7_prefix(now, random_bytes) + b"0000"

    assert UUID(text.decode()).int >> 80 == int(now * 1000)


@given(st.integers(0, 57))
def test_58_random_bits_go_into_an_id(bit):
    """Each of them shows, so two blocks of one millisecond collide once in 2**58."""
    changed = uuid7_prefix(NOON, (1 << bit).to_bytes(8, "big"))

    assert changed != uuid7_prefix(NOON, bytes(8))


def test_random_bits_are_drawn_anew_for_each_block():
    prefixes = [uuid7_prefix(NOON) for _ in range(3000)]

    assert len(set(prefixes)) == 3000


def test_threads_never_draw_the_same_bits():
    with ThreadPoolExecutor(8) as threads:
        prefixes = list(threads.map(lambda _: uuid7_prefix(NOON), range(8000), chunksize=50))

    assert len(set(prefixes)) == 8000


def test_a_forked_process_never_draws_the_bits_of_its_parent():
    """Neither what was drawn before the fork nor what would have come next."""
    program = """
        import os
        from agent.ids import uuid7_prefix
        draw = lambda: [uuid7_prefix(1.0) for _ in range(1000)]
        draw()
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        print(*draw(), sep=chr(10), flush=True)
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, check=True, text=True
    )

    prefixes = done.stdout.split()
    assert len(set(prefixes)) == len(prefixes) == 2000


@given(st.integers(0, 6000))
def test_a_block_has_as_many_ids_as_asked_for_each_greater_than_the_one_before(count):
    ids = uuid7_block(NOON, count)

    assert len(ids) == count
    assert ids == sorted(set(ids))


def test_the_largest_block_is_full_of_valid_ids():
    ids = uuid7_block(NOON, BLOCK)

    assert len(set(ids)) == BLOCK
    assert {len(text) for text in ids} == {36}
    assert UUID(ids[-1].decode()).version == 7


@given(st.integers(0, BLOCK))
def test_suffixes_count_up_in_four_hexadecimal_digits(count):
    result = suffixes(count)

    assert len(result) == count
    assert result[-1:] == ([b"%04x" % (count - 1)] if count else [])


def test_ids_of_a_later_moment_are_greater():
    assert uuid7_block(NOON, BLOCK)[-1] < uuid7_block(NOON + 0.001, 1)[0]
