"""Whether there is room: by the queue's bound and the disk's, looked at seldom but never too late."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capacity import LOOK_SECONDS, Capacity, Limits

MIB = 1 << 20
LIMITS = Limits(max_bytes=100 * MIB, reserve_bytes=50 * MIB, directory=Path("/queue"))


class Disk:
    """What `statvfs` says of the disk."""

    def __init__(self, free: int = 1000 * MIB, total: int = 10_000 * MIB) -> None:
        self.free, self.total, self.looks, self.fails = free, total, 0, False

    def statvfs(self, path: Path) -> SimpleNamespace:
        assert path == LIMITS.directory
        self.looks += 1
        if self.fails:
            raise OSError(5, os.strerror(5))
        blocks = self.total // 4096
        return SimpleNamespace(f_blocks=blocks, f_bavail=self.free // 4096, f_frsize=4096, f_bfree=blocks)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "statvfs", disk.statvfs)
    return disk


@pytest.mark.usefixtures("disk")
def test_the_queues_own_bound_is_named_when_it_is_reached_and_not_before() -> None:
    capacity = Capacity(LIMITS)

    assert capacity.lack(100 * MIB - 1, 0.0) is None
    assert capacity.lack(100 * MIB, 0.0) == "the queue holds 100 MiB of at most 100 MiB (queue_max_bytes)"


def test_the_disk_is_looked_at_every_half_second_and_no_oftener(disk: Disk) -> None:
    capacity = Capacity(LIMITS)

    for now in (0.0, 0.1, LOOK_SECONDS - 0.01, LOOK_SECONDS, LOOK_SECONDS + 0.1):
        assert capacity.lack(0, now) is None

    assert disk.looks == 2


def test_a_burst_that_could_have_filled_the_disk_has_it_looked_at_at_once(disk: Disk) -> None:
    """Events are written twice, and others write too: a quarter of what is free may go by unseen."""
    disk.free = 50 * MIB + 40 * MIB
    capacity = Capacity(LIMITS)
    assert capacity.lack(0, 0.0) is None

    capacity.wrote(10 * MIB - 1)
    assert capacity.lack(0, 0.0) is None
    assert disk.looks == 1
    capacity.wrote(1)
    disk.free = 49 * MIB

    assert capacity.lack(0, 0.0) is not None
    assert disk.looks == 2


def test_while_the_disk_is_short_each_question_looks_anew(disk: Disk) -> None:
    disk.free = 49 * MIB
    capacity = Capacity(LIMITS)
    lack = capacity.lack(0, 0.0)
    assert lack is not None
    assert "the disk has 49 MiB free, and the queue leaves 50 MiB" in lack
    disk.free = 50 * MIB

    assert capacity.lack(0, 0.0) is None


@given(st.integers(0, 400 * MIB), st.lists(st.integers(1, 8 * MIB), max_size=80))
def test_no_burst_between_two_looks_comes_below_what_is_to_stay_free(free: int, sizes: list[int]) -> None:
    """Each write takes twice its size, and none is made where there is a lack."""
    disk = Disk(free=free)
    capacity = Capacity(LIMITS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "statvfs", disk.statvfs)
        for size in sizes:
            if capacity.lack(0, 0.0) is None:
                disk.free -= 2 * size
                capacity.wrote(size)
    assert disk.free >= min(free, LIMITS.reserve_bytes - 2 * max(sizes, default=0))


@pytest.mark.parametrize(
    ("total", "asked_for", "least"), [(8, True, 50), (8, False, 2), (10_000, False, 50)], ids=str
)
def test_the_reserve_is_a_quarter_of_a_small_disk_where_nobody_asked_for_more(
    disk: Disk, total: int, asked_for: bool, least: int
) -> None:
    disk.total = total * MIB
    capacity = Capacity(replace(LIMITS, small_disk=not asked_for))

    disk.free = least * MIB
    assert capacity.lack(0, 0.0) is None
    disk.free = least * MIB - 4096
    assert capacity.lack(0, 1.0) is not None


@pytest.mark.parametrize(("total", "portion"), [(10_000, 2 * MIB), (8, MIB)])
def test_one_transaction_takes_no_more_than_half_of_what_is_kept_back(
    disk: Disk, total: int, portion: int
) -> None:
    disk.total = total * MIB
    capacity = Capacity(LIMITS)

    capacity.lack(0, 0.0)

    assert capacity.portion == portion


def test_a_disk_that_does_not_tell_counts_as_full_until_it_does(disk: Disk) -> None:
    disk.fails = True
    capacity = Capacity(LIMITS)
    lack = capacity.lack(0, 0.0)
    assert lack is not None
    assert "does not tell" in lack
    disk.fails = False

    assert capacity.lack(0, 0.0) is None


def test_limits_that_are_changed_hold_at_once(disk: Disk) -> None:
    del disk
    capacity = Capacity(LIMITS)
    assert capacity.lack(10 * MIB, 0.0) is None

    capacity.limits = replace(LIMITS, max_bytes=10 * MIB)

    assert capacity.lack(10 * MIB, 0.0) is not None
