"""Who lives, who is stuck, and who is only slow."""

from __future__ import annotations

import threading

from agent.watch import UNWELL_LOOKS, Watch


class Thread:
    """A thread's owner that moves when it is poked, until it is told not to."""

    def __init__(self) -> None:
        self.beat = 0.0
        self.alive = True
        self.stuck = False
        self.patient = False

    def poke(self) -> None:
        if not self.stuck:
            self.beat += 1


def watch_of(*names: str, looks: int = 10) -> tuple[Watch, dict[str, Thread]]:
    threads = {name: Thread() for name in names}
    return Watch(threads, looks), threads


def look(watch: Watch, times: int) -> None:
    for _ in range(times):
        watch.look()


def test_threads_that_move_when_poked_live_however_little_they_have_to_do() -> None:
    watch, _ = watch_of("writer", "flusher")

    look(watch, 100)

    assert watch.unwell() is None
    assert watch.lost() is None


def test_a_dead_thread_is_lost_at_once() -> None:
    watch, threads = watch_of("writer", "flusher")

    threads["flusher"].alive = False

    assert watch.lost() == "the flusher thread has died"
    assert watch.unwell() == "the flusher thread has died"


def test_a_thread_that_does_not_move_is_unwell_after_some_looks_and_lost_after_more() -> None:
    watch, threads = watch_of("writer", "flusher")
    look(watch, 2)
    threads["writer"].stuck = True
    look(watch, 1)  # the last move is seen

    look(watch, UNWELL_LOOKS - 1)
    assert watch.unwell() is None
    look(watch, 1)
    assert (watch.unwell() or "").startswith("the writer thread is stuck")
    assert watch.lost() is None
    look(watch, 10 - UNWELL_LOOKS)
    assert (watch.lost() or "").startswith("the writer thread is stuck")


def test_one_move_and_a_thread_is_well_again() -> None:
    watch, threads = watch_of("writer")
    threads["writer"].stuck = True
    look(watch, 9)
    threads["writer"].stuck = False
    look(watch, 2)
    assert watch.unwell() is None
    threads["writer"].stuck = True

    look(watch, 9)

    assert watch.lost() is None


def test_a_thread_that_said_it_may_take_long_is_waited_for() -> None:
    watch, threads = watch_of("flusher")
    threads["flusher"].stuck = threads["flusher"].patient = True
    look(watch, 100)
    assert watch.unwell() is None

    threads["flusher"].patient = False
    look(watch, 10)

    assert watch.lost() is not None


def test_the_place_where_it_is_stuck_is_told() -> None:
    watch, threads = watch_of("sleepy", looks=1)
    threads["sleepy"].stuck = True
    release = threading.Event()
    thread = threading.Thread(target=release.wait, args=(60,), name="sleepy")
    thread.start()
    try:
        look(watch, 2)
        assert "threading.py" in (watch.lost() or "")
    finally:
        release.set()
        thread.join()
