"""Anything that can be done to a queue, in any order, beside a model of plain dictionaries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.errors import QueueError
from agent.queue import Change, Settlement
from agent.queue.memory import MemoryQueue
from support.queues import checkpoint_of, chunk_of, chunks, delivered, letter, names

if TYPE_CHECKING:
    from agent.queue import Queue


class AnySequence(RuleBasedStateMachine):
    """Does anything to a queue, in any order, and the same to some dictionaries."""

    queue: Queue

    @initialize()
    def begin(self) -> None:
        self.chunks: dict[int, list[str]] = {}
        self.dead: dict[int, str] = {}
        names = ("accepted", "refused", "delivered", "duplicates", "repeated", "resent", "dropped")
        self.counts = dict.fromkeys(names, 0)
        self.keys: set[int] = set()
        self.numbers: set[int] = set()
        self.made = 0
        self.read: dict[str, int] = {}
        self.open()

    def open(self) -> None:
        self.queue = MemoryQueue()

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()

    def new_names(self, count: int) -> list[str]:
        self.made += count
        return [f"e{number}" for number in range(self.made - count, self.made)]

    def added(self, keys: list[int], groups: list[list[str]]) -> None:
        for key, group in zip(keys, groups, strict=True):
            assert key > max(self.keys, default=0), "a key was given again"
            self.keys.add(key)
            self.chunks[key] = group

    @rule(
        sizes=st.lists(st.integers(1, 6), max_size=3),
        refused=st.integers(0, 2),
        dropped=st.integers(0, 2),
        read=st.dictionaries(st.sampled_from(["f-0", "f-1", "g-0"]), st.integers(0, 2**50), max_size=2),
        forgotten=st.sets(st.sampled_from(["f-0", "h-0"])),
        repeated=st.integers(0, 2),
    )
    def append(
        self,
        *,
        sizes: list[int],
        refused: int,
        dropped: int,
        read: dict[str, int],
        forgotten: set[str],
        repeated: int,
    ) -> None:
        groups = [self.new_names(size) for size in sizes]
        change = Change([chunk_of(*group) for group in groups], refused, dropped, repeated=repeated)
        change.checkpoints = [checkpoint_of(name, offset=offset) for name, offset in read.items()]
        change.forgotten = sorted(forgotten)
        self.read = {name: offset for name, offset in {**self.read, **read}.items() if name not in forgotten}
        self.added(list(self.queue.commit(change)), groups)
        self.counts["accepted"] += sum(sizes) + dropped + repeated
        self.counts["duplicates"] += repeated
        self.counts["repeated"] += repeated
        self.counts["refused"] += refused
        self.counts["dropped"] += dropped

    @precondition(lambda self: self.chunks)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """Deliver, bury or keep each event of some chunks."""
        settlements = []
        keys = data.draw(st.lists(st.sampled_from(sorted(self.chunks)), unique=True, min_size=1))
        buried_names = []
        for key in keys:
            group = self.chunks[key]
            fates = data.draw(st.lists(st.sampled_from("DUBK"), min_size=len(group), max_size=len(group)))
            by_fate = {
                fate: [name for name, own in zip(group, fates, strict=True) if own == fate] for fate in "DUBK"
            }
            rest = by_fate["K"]
            settlements.append(
                Settlement(
                    key,
                    chunk_of(*rest) if rest else None,
                    delivered=len(by_fate["D"]),
                    duplicates=len(by_fate["U"]),
                    dead=[letter(name) for name in by_fate["B"]],
                    resent=len(by_fate["U"]) // 2,
                )
            )
            self.counts["resent"] += len(by_fate["U"]) // 2
            self.counts["delivered"] += len(by_fate["D"])
            self.counts["duplicates"] += len(by_fate["U"])
            buried_names += by_fate["B"]
            if rest:
                self.chunks[key] = rest
            else:
                del self.chunks[key]
        self.queue.commit(Change(settlements=settlements))
        new = [dead for dead in self.queue.dead_letters() if dead.id not in self.dead]
        assert [dead.external_id for dead in new] == buried_names
        for dead in new:
            assert dead.id > max(self.numbers, default=0), "a number was given again"
            self.numbers.add(dead.id)
            self.dead[dead.id] = dead.external_id

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def revive_and_purge(self, data: st.DataObject) -> None:
        numbers = data.draw(st.lists(st.sampled_from(sorted(self.dead)), unique=True, min_size=1))
        cut = data.draw(st.integers(0, len(numbers)))
        revived, purged = numbers[:cut], numbers[cut:]
        group = [self.dead[number] for number in revived]
        requeued = [chunk_of(*group)] if group else []
        keys = self.queue.commit(Change(revived=revived, requeued=requeued, purged=purged))
        self.added(list(keys), [group] if group else [])
        self.counts["dropped"] += len(purged)
        for number in numbers:
            del self.dead[number]

    @rule(key=st.integers(1, 40), number=st.integers(1, 40))
    def ask_for_the_impossible(self, key: int, number: int) -> None:
        change = Change(refused=1, dropped=1)
        if key not in self.chunks:
            change.settlements = [delivered(key)]
        elif number not in self.dead:
            change.purged = [number]
        else:
            return
        with pytest.raises(QueueError):
            self.queue.commit(change)

    @invariant()
    def the_queue_holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert {key: names(chunk.lines) for key, chunk in chunks(self.queue)} == self.chunks
        assert {dead.id: dead.external_id for dead in self.queue.dead_letters()} == self.dead
        assert {some.id: some.offset for some in self.queue.checkpoints()} == self.read
        assert self.queue.first_key() == min(self.chunks, default=self.queue.books().next_key)

    @invariant()
    def the_books_balance(self) -> None:
        if not hasattr(self, "queue"):
            return
        books = self.queue.books()
        assert {name: getattr(books, name) for name in self.counts} == self.counts
        assert books.dead == len(self.dead)
        assert books.pending == sum(map(len, self.chunks.values()))
        assert (books.bytes > 0) == bool(self.chunks)
