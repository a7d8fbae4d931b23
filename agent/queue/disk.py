"""The queue on disk: a database of `agent.queue.store` used as a log.

Rows: an integer key for each chunk, in order of arrival; for the others see `agent.queue.rows`.
Keys are our own and only ever grow.

A database that is not what was written is set aside when that is noticed, and what can be
read of it goes into a fresh one (`agent.queue.losses`): at the start, and later as well. A
single chunk that is not what was written is set aside within the database.
"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec

from agent import chunk
from agent.clock import Clock, SystemClock
from agent.errors import QueueError, QueueFullError
from agent.queue import Books, Change, Checkpoint, DeadLetter, check, look, replace_books
from agent.queue.backfill import Backfill
from agent.queue.ballast import Ballast
from agent.queue.destination import refuse_other_server
from agent.queue.directory import prepare_directory
from agent.queue.fault import fault
from agent.queue.hold import Hold, Names
from agent.queue.losses import Losses
from agent.queue.mend import finish
from agent.queue.raw import sync_directory
from agent.queue.rows import BOOKS, CHECKPOINT, DAMAGED, DEAD, FORMAT, META, Meta, numbered, seal
from agent.queue.store import ERRORS, DamageError, checkpoint_keys, dead_ids, open_store, reason, record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from agent.queue.store import Cache
    from agent.queue.wal import Glance

__all__ = ["FORMAT", "DiskQueue"]

_SIZES_KEPT = 50_000
_DISK_HINT = "see the disk's health"
_EXIT_HINT = (
    "nothing was changed, as when_damaged says; `agent queue verify` tells more, and with "
    'when_damaged = "rescue" the next start rescues what can be read'
)
_T = TypeVar("_T")


class _AbsentError(Exception):
    """A change names a row that is not there."""


class DiskQueue:
    """The durable queue of one directory.

    Args:
        directory: absolute; made (0700) when it is not there.
        server: the address that the events are meant for; the queue remembers it.
        clock: for the names of what is set aside.
        rescue: what is damaged is mended; else each use that meets damage fails, and nothing is changed.
        on_damage: called with what is wrong each time that such a use fails.

    Raises:
        QueueError: the directory cannot be used, and why.
    """

    def __init__(
        self,
        directory: Path,
        *,
        server: str = "",
        clock: Clock | None = None,
        rescue: bool = True,
        on_damage: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._directory = directory
        self._server = server
        self._losses = Losses(directory, clock or SystemClock(), may_mend=rescue, on_damage=on_damage)
        self._damage_hint = _DISK_HINT if rescue else _EXIT_HINT
        self._write = threading.RLock()
        self._sizes: dict[int, int] = {}  # of rows that were written or read lately
        self._cache: Cache = None
        self._books = Books()
        self._meta = Meta()
        self._ballast = Ballast(directory)
        self._backfill = Backfill(directory / check.DATABASE)
        self._names = Names(directory)
        prepare_directory(directory)
        look.refuse_newer(directory, look.format_of(directory))
        self._make_way()
        finish(directory)
        found, seen = self._probe()
        with self._damage_told("open"):
            if found is not None:
                self._losses.mend(found, seen)
            try:
                self._load()
            except DamageError as damage:
                self._losses.mend(str(damage), seen)
                self._load()

    def _make_way(self) -> None:
        """See that there is room to open the store."""
        try:
            self._ballast.make_way()
        except OSError as error:
            raise fault("open", self._directory, error) from error

    def _probe(self) -> tuple[str | None, Glance]:
        """Return what is wrong with the store before it is opened, and what was seen of its log."""
        try:
            check.keep_index(self._directory)
            seen = check.glance(self._directory)
            found = check.probe(self._directory, seen)
            if found is None:
                check.forget_index(self._directory)
        except OSError as error:
            raise fault("open", self._directory, error) from error
        return found, seen

    @property
    def organization(self) -> str:
        """The organization that the events are meant for; empty while it is not known."""
        return self._meta.organization

    @property
    def directory(self) -> Path:
        """Where the queue lies."""
        return self._directory

    # -- writing -----------------------------------------------------------------------

    def commit(self, change: Change) -> Sequence[int]:
        """Apply `change` whole and make it durable; return the keys of its new chunks.

        What adds no events may take the room that is kept for it.

        Raises:
            QueueFullError: there is no room; nothing of it was applied.
            QueueError: nothing of it was applied.
        """
        with self._write, self._damage_told("write"):
            self._see_files()
            try:
                return self._commit_or_mend(change)
            except QueueFullError:
                if change.appends or change.letters or not self._give_back():
                    raise
            return self._commit_or_mend(change)

    def recover(self, *, short: bool = False) -> None:
        """See that the queue is ready for more, with room kept for settling, also after the disk refused.

        Args:
            short: room is wanted: what was taken out is to be given back to the disk now.

        Raises:
            QueueFullError: there is no room to keep.
            QueueError: the disk refuses still.
        """
        with self._write, self._damage_told("write"):
            self._see_files()
            try:
                self._store()
                self._backfill.prepare(all_of_it=short)
            except ERRORS as error:
                self._backfill.distrust()
                if check.is_damage(error):
                    raise DamageError(reason(error)) from error
                raise fault("write", self._directory, error) from error
            if not self._ballast.keep():
                raise QueueFullError(
                    "write the queue", str(self._directory), "the disk is full", "make room on it"
                )

    def _give_back(self) -> bool:
        """Give back the room that is kept; True when there was some."""
        try:
            return self._ballast.give_back()
        except OSError:
            return False

    def _commit_or_mend(self, change: Change) -> Sequence[int]:
        """Apply `change`; where the store turns out not to be what was written, mend it before."""
        try:
            return self._commit(change)
        except _AbsentError as absent:
            found = self._losses.found(self._books, self._row)
            if found is None:
                raise QueueError("write the queue", str(self._directory), str(absent)) from absent
            self._replace(found)
        except DamageError as damage:
            self._replace(str(damage))
        return self._commit(change)

    def _commit(self, change: Change) -> Sequence[int]:
        """Apply `change`."""
        cache, before, astray = self._store(), self._books, self._losses.astray
        try:
            if self._losses.mends or any(settlement.damaged for settlement in change.settlements):
                change, before, astray = self._losses.count(change, before, self._row)
            books = change.count(before)
            self._backfill.prepare()
            with cache.transact():
                books, keys = self._apply(change, books)
                cache.set(BOOKS, seal(BOOKS, books))
        except BaseException as error:
            self._sizes.clear()
            if not isinstance(error, ERRORS):
                raise
            # A COMMIT that failed is not rolled back by diskcache: start from a new connection.
            self._reopen()
            self._names.forget_log()
            self._backfill.distrust()
            if check.is_damage(error):
                raise DamageError(reason(error)) from error
            raise fault("write", self._directory, error) from error
        self._names.note()
        self._books, self._losses.astray = books, astray
        if change.organization:
            self._meta = msgspec.structs.replace(self._meta, organization=change.organization)
        return keys

    def _apply(self, change: Change, books: Books) -> tuple[Books, list[int]]:
        """Write the rows of `change`; return the books with sizes and keys, and the new keys."""
        cache, sizes = self._cache, self._sizes
        if len(sizes) > _SIZES_KEPT:
            sizes.clear()
        size, key, dead = books.bytes, books.next_key, books.next_dead
        moved = 0
        keys = []
        for new in (*change.appends, *change.requeued):
            row = new.encode(key)
            cache.set(key, row)
            sizes[key] = len(row)
            keys.append(key)
            key += 1
            moved += len(row)
        size += moved
        for settlement in change.settlements:
            old = self._row_size(settlement.key)
            size -= old
            moved += old
            sizes.pop(settlement.key, None)
            if settlement.damaged:
                cache.set(numbered(DAMAGED, settlement.key), cache.get(settlement.key))
            if settlement.rest is None:
                if not cache.delete(settlement.key) and not self._losses.mends:
                    raise _AbsentError(f"there is no chunk {settlement.key}")
            else:
                row = settlement.rest.encode(settlement.key)
                cache.set(settlement.key, row)
                sizes[settlement.key] = len(row)
                size += len(row)
                moved += len(row)
        for letter in change.buried:
            name = numbered(DEAD, dead)
            row = seal(name, msgspec.structs.replace(letter, id=dead))
            cache.set(name, row)
            moved += len(row)
            dead += 1
        for number in (*change.revived, *change.purged):
            if not cache.delete(numbered(DEAD, number)):
                raise _AbsentError(f"there is no dead letter {number}")
        self._apply_words(change)
        rows = len(keys) + len(change.settlements) + dead - books.next_dead
        self._backfill.wrote(moved, rows + len(change.revived) + len(change.purged) + len(change.checkpoints))
        return replace_books(books, bytes=size, next_key=key, next_dead=dead), keys

    def _apply_words(self, change: Change) -> None:
        """Write how far files are read, and whom the events are for."""
        if change.organization:
            meta = msgspec.structs.replace(self._meta, organization=change.organization)
            self._cache.set(META, seal(META, meta))
        for checkpoint in change.checkpoints:
            name = CHECKPOINT + checkpoint.id
            self._cache.set(name, seal(name, checkpoint))
        for forgotten in change.forgotten:
            self._cache.delete(CHECKPOINT + forgotten)

    def _row_size(self, key: int) -> int:
        """Return the size of a chunk's row, which must be there."""
        known = self._sizes.get(key)
        if known is not None:
            return known
        row = self._cache.get(key)
        if row is None and not self._losses.mends:
            raise _AbsentError(f"there is no chunk {key}")
        return len(row or b"")

    # -- reading -----------------------------------------------------------------------

    def books(self) -> Books:
        """Return the books as of the last commit."""
        return self._books

    def first_key(self) -> int:
        """Return the key of the oldest chunk, or of the next one when there is none."""
        return self._read(self._first_key)

    def _first_key(self, cache: Cache) -> int:
        first, end = next(iter(cache.iterkeys()), None), self._books.next_key
        if isinstance(first, int) and first >= end:
            with self._write:  # what was committed just now is noted in the books only then
                end = self._books.next_key
        if isinstance(first, int) and not 0 < first < end:
            raise DamageError(f"it holds a chunk {first}, and the next one is to be {end}")
        return first if isinstance(first, int) else end

    def get(self, key: int) -> chunk.Chunk | None:
        """Return the chunk of `key`, or None when it is settled."""
        row: bytes | None = self._read(lambda cache: cache.get(key))
        if row is None:
            return None
        # What the writer noted meanwhile is newer than this row.
        self._sizes.setdefault(key, len(row))
        return chunk.decode(row, key)

    def dead_letters(self, ids: Iterable[int] | None = None) -> Iterator[DeadLetter]:
        """Yield the dead letters of these numbers, or all, oldest first."""
        for number in self._read(dead_ids) if ids is None else sorted(set(ids)):
            letter = self._read(partial(record, key=numbered(DEAD, number), kind=DeadLetter))
            if letter is not None:
                yield letter

    def checkpoints(self) -> list[Checkpoint]:
        """Return all checkpoints, in order of their ids."""
        found = (self._read(partial(record, key=key, kind=Checkpoint)) for key in self._read(checkpoint_keys))
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def _read(self, action: Callable[[Cache], _T]) -> _T:
        """Read; where the store turns out not to be what was written, mend it and read again."""
        cache = self._store()
        with self._damage_told("read"):
            try:
                return self._try(action, cache)
            except DamageError as damage:
                with self._write:
                    if cache is self._cache:
                        self._replace(str(damage))
                return self._try(action, self._store())

    def _try(self, action: Callable[[Cache], _T], cache: Cache) -> _T:
        """Read, turning a store's exceptions into ours."""
        try:
            return action(cache)
        except ERRORS as error:
            if check.is_damage(error):
                raise DamageError(reason(error)) from error
            raise fault("read", self._directory, error) from error

    def _row(self, key: int) -> bytes | None:
        """Return the row of a chunk; raises one of `ERRORS` or DamageError."""
        row: bytes | None = self._store().get(key)
        return row

    # -- damage ------------------------------------------------------------------------

    def audit(self) -> bool:
        """Look whether what is there makes up the books, and mend the queue if not; True when that was done.

        Raises:
            QueueError: it cannot be mended.
        """
        with self._write, self._damage_told("mend"):
            found = self._losses.found(self._books, self._row)
            if found is not None:
                self._replace(found)
            return found is not None

    def _see_files(self) -> None:
        """See that what is committed now has a name in the directory; raises QueueError, DamageError."""
        gone = self._names.gone()
        if gone == self._directory:
            raise QueueError(
                "write the queue",
                str(gone),
                "the directory was removed or moved away while it is in use",
                "put it back where it was; what it held is still being delivered",
            )
        if gone is not None:
            self._replace(f"{gone.name} was removed while it is in use")

    def _replace(self, found: str) -> None:
        """Mend the store while it is in use."""
        old = self._cache
        self._losses.mend(found, check.glance(self._directory), self._books, self._held())
        self._names.forget()
        self._sizes.clear()
        self._backfill.close()
        self._cache = None
        self._store()
        # SQLite sees that its file has moved, and leaves the new one's log alone.
        old.close()

    def _held(self) -> Hold | None:
        """Return what is still to be had of files that were taken away; None where they were not."""
        db = self._backfill.connection
        if db is None or self._names.gone() is None:
            return None
        with contextlib.suppress(OSError):
            held = Hold(db)
            return held if held.books == self._books else None
        return None

    @contextlib.contextmanager
    def _damage_told(self, operation: str) -> Iterator[None]:
        """Turn damage that could not be mended into our error."""
        try:
            yield
        except (DamageError, _AbsentError) as error:
            raise QueueError(
                f"{operation} the queue",
                str(self._directory),
                f"it is damaged: {error}",
                self._damage_hint,
            ) from error

    # -- the store ---------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the store (this thread's hold on it; the others end with their threads)."""
        with self._write:  # which another thread may be about to do
            with contextlib.suppress(QueueError), self._damage_told("write"):
                self._see_files()
            self._names.forget()
            self._backfill.close()
            self._ballast.keep()
        if self._cache is not None:
            self._cache.close()

    def _store(self) -> Cache:
        """Return the store; open it where that was left undone."""
        if self._cache is None:
            with self._write:
                self._load()
        return self._cache

    def _load(self) -> None:
        """Open the store and read what must be known of it."""
        cache = self._open()
        try:
            self._check_meta(cache)
            self._books = self._try(partial(record, key=BOOKS, kind=Books), cache) or Books()
        except BaseException:
            cache.close()
            raise
        self._cache = cache

    def _open(self) -> Cache:
        """Open or make the store, readable for its owner only, and make its files durable."""
        try:
            cache = open_store(self._directory)
            sync_directory(self._directory)
            sync_directory(self._directory.parent)
        except ERRORS as error:
            if check.is_damage(error):
                raise DamageError(reason(error)) from error
            raise fault("open", self._directory, error) from error
        except (TypeError, ValueError, KeyError) as error:
            # What comes of it when diskcache believes settings that are damaged.
            raise DamageError(f"diskcache: {error}") from error
        return cache

    def _reopen(self) -> None:
        """Give this thread a new connection; the store's files stay as they are."""
        self._cache.close()

    def _check_meta(self, cache: Cache) -> None:
        """Refuse a newer format and another destination; remember ours."""
        server = self._server
        known = self._try(partial(record, key=META, kind=Meta), cache)
        meta = known or Meta()
        look.refuse_newer(self._directory, meta.format)
        books = self._try(partial(record, key=BOOKS, kind=Books), cache) or Books()
        refuse_other_server(self._directory, meta.server, server, books)
        holds = books.pending or books.dead
        wanted = Meta(FORMAT, server or meta.server, meta.organization if holds else "")
        self._meta = wanted
        if known != wanted:
            self._try(lambda cache: cache.set(META, seal(META, wanted)), cache)
