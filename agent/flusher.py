"""The flusher: takes the oldest chunks, makes batches, sends them, and settles the answers.

One thread decides (`step`); a few sender threads do nothing but one request at a time.
Nothing is settled before its evidence is there: a row is deleted after the 200 that
counts its events, or in the transaction that makes a dead letter of the last of them.

Chunks that are not due are remembered by key alone; what is in memory is what is on
its way and one batch more, however long the queue is.
"""

from __future__ import annotations

import heapq
import itertools
import math
import queue
import threading
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import msgspec

from agent import refusal
from agent.answer import Answer, NoAnswer, Outcome
from agent.batch import Backlog, Batch, Lease
from agent.chunk import DamagedChunkError, NewerChunkError
from agent.errors import QueueError
from agent.logs import get
from agent.pace import Pace, retry_after
from agent.queue import DeadLetter, Queue, Settlement
from agent.verdict import Action, Fault, Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.chunk import Chunk
    from agent.clock import Clock
    from agent.server_clock import ServerClock
    from agent.writer import Writer

_FAR = datetime(9999, 12, 31, tzinfo=UTC)
_MAX_SUSPECTS = 4
_REFUSALS_BEFORE_HOLD = 24
_FAILURES_TO_BURY = 6  # in a row: a server that fails now and then must not cost an event
_LONE_SECONDS = 1.0
_TOKEN_CHECK_SECONDS = 2.0
_SETTLE_SECONDS = 1.0
_EMPTY = b'{"events":[]}'
_OFFERED_BYTES = 8 << 20  # of chunks that are kept until they are sent, to save reading them


class Sender(Protocol):
    """What the flusher needs of Polar."""

    def ingest(self, body: bytes) -> Outcome:
        """Send one request and return what came back; never raises for what networks do."""
        ...

    def close(self) -> None:
        """End running requests and let go."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """How delivery stands, for status; one immutable picture.

    Attributes:
        state: idle, sending, retrying, throttled or blocked.
        last_error: the last trouble, while it lasts or until something was delivered since.
        last_success: when Polar last took a batch, Unix seconds.
        next_attempt_in: seconds until the next request, while one is waited for.
        held: chunks and events that wait for their own time.
        requests: requests made so far.
    """

    state: str = "idle"
    last_error: str | None = None
    last_success: float | None = None
    next_attempt_in: float | None = None
    held: int = 0
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Options:
    """The settings that concern the flusher; see the README's table."""

    flush_interval: float
    max_batch_events: int
    max_batch_bytes: int
    max_in_flight: int


@dataclass(frozen=True, slots=True)
class _Result:
    number: int
    batch: Batch | None  # None: an empty batch, sent to see whether the server is up
    outcome: Outcome
    sent_at: float
    answered_at: float


class Flusher:
    """Delivers the queue.

    Args:
        store: where chunks are read.
        writer: where settlements go.
        connect: makes the sender; called once, by the flusher's thread, before the first request.
        clock: for waiting.
        server_clock: learns from every answer.
        pace: how fast.
        options: the settings.
        token: returns the token, to see that it changed.
    """

    def __init__(
        self,
        store: Queue,
        writer: Writer,
        connect: Callable[[], Sender],
        *,
        clock: Clock,
        server_clock: ServerClock,
        pace: Pace,
        options: Options,
        token: Callable[[], str | None],
    ) -> None:
        self._store = store
        self._writer = writer
        self._connect = connect
        self._clock = clock
        self._server_clock = server_clock
        self._pace = pace
        self._options = options
        self._token = token
        self._log = get("flusher")
        self._wake = threading.Event()
        self._sender: Sender | None = None
        self._jobs: queue.SimpleQueue[tuple[int, Batch | None, bytes] | None] = queue.SimpleQueue()
        self._results: deque[_Result] = deque()
        self._senders: list[threading.Thread] = []
        self._in_flight = 0
        self._numbers = itertools.count(1)
        self._cursor = 0
        self._backlog = Backlog()
        self._again: deque[Batch] = deque()  # to be sent before anything new, in order
        self._suspects: deque[tuple[float, Batch]] = deque()  # failed without a reason: (not before, batch)
        self._offered: dict[int, Chunk] = {}
        self._offered_bytes = 0
        self._offer_lock = threading.Lock()
        self._held: list[tuple[float, int, int | Batch]] = []  # heap: (due, number, chunk key or batch)
        self._passed = 0  # the newest request that the server took
        self._worked = 0  # the same, where one without events counts too
        self._failed = 0.0  # the newest that failed through the server: it had no events, or passed later
        self._refusals = 0  # refusals that name no event, since the last batch that passed
        self._searched = 0  # how many events were pending when the queue was looked through
        self._token_seen: str | None = None
        self._unnoticed = 0  # events committed since the last look
        self._enough: float = 1  # how many of them are worth another look
        self._urgent = 0  # how many wait for the queue to drain
        self._stopping = False
        self._trouble: str | None = None
        self._last_success: float | None = None
        self._requests = 0
        self.delivery = Delivery()
        self.beat = clock.monotonic()
        self._thread = threading.Thread(target=self._run, name="flusher")

    # -- from other threads ------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def notify(self, events: int) -> None:
        """Learn that events were added; wakes the thread only when there is enough for a batch."""
        self._unnoticed += events
        if self._unnoticed >= self._enough:
            self._wake.set()

    def offer(self, keys: Sequence[int], chunks: Sequence[Chunk]) -> None:
        """Get chunks that were just written; they are kept as far as there is room for them."""
        with self._offer_lock:
            for key, chunk in zip(keys, chunks, strict=True):
                if key < self._cursor:
                    continue  # it was read already
                if self._offered_bytes + len(chunk.lines) > _OFFERED_BYTES:
                    return
                self._offered[key] = chunk
                self._offered_bytes += len(chunk.lines)

    def hurry(self) -> None:
        """Deliver everything without waiting for full batches, until `relax`."""
        self._urgent += 1
        self._wake.set()

    def relax(self) -> None:
        """End of `hurry`."""
        self._urgent -= 1

    def stop(self) -> None:
        """End, and break off running requests; what they carried stays in the queue."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    # -- the thread --------------------------------------------------------------------

    def _run(self) -> None:
        """Step until told to stop."""
        while not self._stopping:
            wait = self.step()
            if wait != 0:
                self._clock.wait(self._wake, wait)
            self._wake.clear()
        if self._sender is not None:
            self._sender.close()
        for _ in self._senders:
            self._jobs.put(None)
        for thread in self._senders:
            thread.join()
        self._take_results()

    def step(self) -> float | None:
        """Do what can be done now; return the seconds until there may be more, None for until woken."""
        now = self.beat = self._clock.monotonic()
        self._unnoticed = 0
        self._enough = math.inf
        self._take_results()
        self._look_at_token()
        wait = self._dispatch(now)
        self._show(now)
        # What was committed since the queue was read had no one to wake.
        return 0.0 if self._unnoticed >= self._enough else wait

    def _dispatch(self, now: float) -> float | None:
        """Send what may be sent; return the seconds until the next look."""
        while True:
            if self._in_flight >= (1 if self._pace.probing else self._options.max_in_flight):
                return None  # an answer wakes us
            pause = self._pace.wait(now)
            if pause > 0:
                if not self._anything_waits():
                    self._enough = 1
                    return self._seconds_until_due()
                return min(pause, _TOKEN_CHECK_SECONDS) if self._pace.held else pause
            batch, wait = self._next_batch(now)
            if batch is None:
                return wait if wait is not None or self._in_flight else self._search()
            self._send(batch, now)

    def _search(self) -> float | None:
        """See that nothing is pending when nothing is left to do; return the seconds until the next look.

        Damage can hide chunks: the queue is looked through, mended if need be, and read once more.
        """
        settling = self._writer.settling
        pending = self._store.books().pending
        if settling and pending:
            return _SETTLE_SECONDS
        if not pending or pending == self._searched or self._fresh_work():
            return None
        self._searched = pending
        self._cursor = 0
        try:
            self._store.audit()
        except QueueError as error:
            self._log.error("events are pending and cannot be found", reason=error.reason, hint=error.hint)
        return 0.0

    def _anything_waits(self) -> bool:
        """Tell whether there is something that could be sent now but for the pace."""
        return bool(
            self._again
            or self._suspects
            or self._backlog.parts
            or self._cursor < self._store.books().next_key
        )

    def _next_batch(self, now: float) -> tuple[Batch | None, float | None]:
        """Choose what goes next; None with the seconds until there is something."""
        self._release_held()
        if self._again:
            return self._again.popleft(), None
        suspect = self._due_suspect(now)
        if suspect is not None and (len(self._suspects) > _MAX_SUSPECTS or not self._fresh_work()):
            self._suspects.popleft()
            return suspect, None
        fresh, wait = self._fresh_batch()
        if fresh is not None:
            return fresh, None
        if suspect is not None:
            self._suspects.popleft()
            return suspect, None
        waits = [wait, self._seconds_until_due()]
        if self._suspects:
            waits.append(max(0.01, self._suspects[0][0] - now))
        known = [seconds for seconds in waits if seconds is not None]
        return None, min(known, default=None)

    def _due_suspect(self, now: float) -> Batch | None:
        """Return the oldest batch that failed without a reason, if its time has come."""
        if self._suspects and self._suspects[0][0] <= now:
            return self._suspects[0][1]
        return None

    def _fresh_work(self) -> bool:
        """Tell whether there are events that no batch has carried yet."""
        return bool(self._backlog.parts) or self._cursor < self._store.books().next_key

    def _fresh_batch(self) -> tuple[Batch | None, float | None]:
        """Make a batch of what is next in the queue, if it is full or old enough."""
        options, backlog = self._options, self._backlog
        self._read()
        if not backlog.parts:
            self._enough = 1
            return None, None
        if not backlog.full(options.max_batch_events, options.max_batch_bytes) and not self._urgent:
            arrived = backlog.parts[0].lease.chunk.arrived_ms / 1000
            age = self._clock.wall() - arrived
            if 0 <= age < options.flush_interval:
                self._enough = options.max_batch_events - backlog.events
                return None, options.flush_interval - age
        # When requests are what is scarce, each goes out full.
        fill = self._pace.scarce
        parts = backlog.take(options.max_batch_events, options.max_batch_bytes, fill=fill)
        return Batch(f"b{next(self._numbers)}", parts), None

    def _read(self) -> None:
        """Read chunks until there is enough for one batch."""
        options, backlog = self._options, self._backlog
        end = self._store.books().next_key
        if self._cursor == 0:
            self._cursor = self._store.first_key()
        while self._cursor < end and not backlog.full(options.max_batch_events, options.max_batch_bytes):
            key = self._cursor
            self._cursor += 1
            self._read_chunk(key)

    def _read_chunk(self, key: int) -> None:
        """Put one chunk where it belongs."""
        try:
            chunk = self._take_offered(key) or self._store.get(key)
        except DamagedChunkError as error:
            self._log.error("a chunk of the queue is not what was written", chunk=key, reason=str(error))
            self._writer.settle([Settlement(key, None, damaged=True)])
            return
        except NewerChunkError as error:
            self._log.error(
                "a chunk of the queue cannot be read: its events stay where they are",
                chunk=key,
                reason=str(error),
            )
            return
        if chunk is None:
            return
        if chunk.due_ms > self._server_clock.now() * 1000:
            heapq.heappush(self._held, (chunk.due_ms / 1000, next(self._numbers), key))
        else:
            self._backlog.add(Lease(key, chunk).part())

    def _take_offered(self, key: int) -> Chunk | None:
        """Return a chunk that need not be read."""
        with self._offer_lock:
            chunk = self._offered.pop(key, None)
            if chunk is not None:
                self._offered_bytes -= len(chunk.lines)
            return chunk

    # -- events that wait for their own time -------------------------------------------

    def _release_held(self) -> None:
        """Take up what has become due."""
        now, options = self._server_clock.now(), self._options
        while self._held and self._held[0][0] <= now:
            if self._backlog.full(options.max_batch_events, options.max_batch_bytes):
                return  # the others can wait where they are
            _, _, item = heapq.heappop(self._held)
            if isinstance(item, Batch):
                self._again.append(item)
            else:
                self._read_chunk(item)

    def _seconds_until_due(self) -> float | None:
        """Return when the next held event is due; None when none is held."""
        if not self._held:
            return None
        return max(0.01, self._held[0][0] - self._server_clock.now())

    # -- requests ----------------------------------------------------------------------

    def _send(self, batch: Batch | None, now: float) -> None:
        """Hand a request to a sender thread."""
        body = _EMPTY
        if batch is not None:
            body = batch.body()
            batch.attempts += 1
            batch.first_attempt = batch.first_attempt or self._clock.wall()
        self._pace.take(now)
        self._requests += 1
        self._in_flight += 1
        if self._in_flight > len(self._senders):
            self._add_sender()
        self._jobs.put((self._requests, batch, body))

    def _add_sender(self) -> None:
        """Start one more sender thread; the first one brings the HTTP library in."""
        if self._sender is None:
            self._sender = self._connect()
        thread = threading.Thread(
            target=self._serve, args=(self._sender,), name=f"sender-{len(self._senders)}"
        )
        thread.start()
        self._senders.append(thread)

    def _serve(self, sender: Sender) -> None:
        """Send one request after the other; a sender thread."""
        while True:
            job = self._jobs.get()
            if job is None:
                return
            number, batch, body = job
            sent_at = self._clock.monotonic()
            try:
                outcome = sender.ingest(body)
            except Exception as error:  # noqa: BLE001  # whatever it was, the batch must come back
                outcome = NoAnswer("broken", f"{type(error).__name__} in the HTTP client")
            del body, job
            self._results.append(_Result(number, batch, outcome, sent_at, self._clock.monotonic()))
            self._wake.set()

    def _look_at_token(self) -> None:
        """Try at once when the token was changed while nothing could be sent without one."""
        if self._pace.held:
            token = self._token()
            if token != self._token_seen:
                self._token_seen = token
                self._pace.retry_now()

    # -- answers -----------------------------------------------------------------------

    def _take_results(self) -> None:
        """Deal with the answers that are there."""
        while self._results:
            result = self._results.popleft()
            self._in_flight -= 1
            if isinstance(result.outcome, Answer) and result.outcome.server_time is not None:
                self._server_clock.learn(result.outcome.server_time, result.sent_at, result.answered_at)
            if self._stopping and isinstance(result.outcome, NoAnswer):
                continue  # broken off; its events stay in the queue
            if result.batch is None:
                self._probed(result)
            else:
                self._carry_out(result, result.batch)

    def _carry_out(self, result: _Result, batch: Batch) -> None:  # noqa: C901  # a table
        """Do what the verdict on a batch says."""
        outcome = result.outcome
        verdict = judge(outcome, batch.events)
        now = self._clock.monotonic()
        asked = 0.0
        if isinstance(outcome, Answer):
            asked = retry_after(outcome.retry_after, self._server_clock.now())
        match verdict.action:
            case Action.SETTLE:
                self._settle(result.number, batch, verdict.delivered, verdict.duplicates)
            case Action.RESEND if not batch.resent:
                batch.resent = True
                self._again.appendleft(batch)
            case Action.RESEND:
                self._log.error("the server's sums stay wrong: settled all the same", reason=verdict.reason)
                duplicates = min(verdict.duplicates, batch.events)
                self._settle(result.number, batch, batch.events - duplicates, duplicates)
            case Action.SIFT:
                self._sift(batch, verdict)
            case Action.SPLIT:
                self._refused(batch, verdict, now)
            case Action.RETRY if verdict.suspect:
                self._suspect(batch, verdict, now, asked)
            case Action.RETRY:
                self._again.appendleft(batch)
                self._in_trouble(verdict, self._pace.failed(now, asked))
            case Action.THROTTLE:
                self._again.appendleft(batch)
                self._in_trouble(verdict, self._pace.too_fast(now, asked))
            case Action.HOLD:
                self._again.appendleft(batch)
                self._hold(verdict, now)

    def _hold(self, verdict: Verdict, now: float) -> None:
        """Send nothing until somebody mends it, but for a look now and then."""
        self._token_seen = self._token()
        self._in_trouble(verdict, self._pace.hold(now))

    def _settle(self, number: int, batch: Batch, delivered: int, duplicates: int) -> None:
        """All of a batch is at Polar."""
        self._writer.settle(batch.settlements(delivered=delivered, duplicates=duplicates))
        self._good_news()
        if batch.failures:
            self._failed = max(self._failed, batch.failed_at)  # so it was not the batch
        self._passed = max(self._passed, number)
        self._worked = max(self._worked, number)

    def _good_news(self) -> None:
        """The server works and takes our events."""
        if self._trouble is not None:
            self._log.info("delivery works again")
        self._trouble = None
        self._refusals = 0
        self._last_success = self._clock.wall()
        self._pace.succeeded()

    def _in_trouble(self, verdict: Verdict, wait: float) -> None:
        """Note what is wrong; one line in the log when it changes."""
        trouble = f"{verdict.reason}; {verdict.hint}" if verdict.hint else verdict.reason
        if trouble != self._trouble:
            self._trouble = trouble
            tell = self._log.error if verdict.action is Action.HOLD else self._log.warning
            tell(
                "nothing is delivered: events stay in the queue",
                reason=verdict.reason,
                hint=verdict.hint,
                next_attempt_in_seconds=round(wait, 1),
            )

    def _sift(self, batch: Batch, verdict: Verdict) -> None:
        """Bury or hold the named events; send the rest again."""
        faults = verdict.faults
        early = {index: fault for index, fault in faults.items() if fault.future}
        dead = [index for index in sorted(faults) if index not in early]
        if dead:
            self._bury(batch.choose(dead), [faults[index] for index in dead], verdict.status)
        for index in early:
            self._hold_until_due(batch.choose([index], f".{index}"), batch.line(index))
        rest = [index for index in range(batch.events) if index not in faults]
        if rest:
            self._again.appendleft(batch.choose(rest, "s"))
        # The server works; whether it takes our events, the rest will tell.
        self._pace.succeeded()

    def _hold_until_due(self, batch: Batch, line: bytes) -> None:
        """Keep one event until its timestamp has passed by the server's clock."""
        facts = refusal.full_check(line, _FAR)
        due = self._server_clock.now() + 1.0
        if isinstance(facts, refusal.Facts) and facts.timestamp is not None:
            due = max(due, facts.timestamp.timestamp() + 0.001)
        heapq.heappush(self._held, (due, next(self._numbers), batch))

    # A batch that fails unnamed may be bad, or the server may be. What tells them apart is what
    # became of requests that were sent after it had failed: those before say nothing. When
    # one event is left, it has to fail again and again while everything else passes.

    def _blamed(self, batch: Batch) -> bool:
        """Tell whether others passed since a batch, or the one that it was cut from, first failed."""
        return self._passed > batch.doubted_at

    def _certain(self, batch: Batch) -> bool:
        """Tell whether a batch is bad beyond doubt."""
        return self._blamed(batch) and batch.failures >= _FAILURES_TO_BURY

    def _count_failure(self, batch: Batch) -> bool:
        """Count failures between which the server worked; True if it did since the last one."""
        worked = self._worked > batch.failed_at >= self._failed
        if batch.doubted_at == math.inf:
            batch.doubted_at = self._requests
        batch.failures = batch.failures + 1 if worked else 1
        batch.failed_at = self._requests
        return worked

    def _refused(self, batch: Batch, verdict: Verdict, now: float) -> None:
        """The server works and does not want the batch; halve it until the bad event is alone."""
        worked = self._count_failure(batch)
        if batch.events > 1:
            self._refusals += 1
            self._again.extendleft(reversed(batch.halves()))
        elif verdict.status == 413 or self._certain(batch):
            self._bury(batch, [Fault(verdict.reason, [])], verdict.status)
        elif worked and self._blamed(batch):
            self._put_aside(batch, now, _LONE_SECONDS)
        else:
            # Alone and refused, but nothing else passed either: perhaps it is not the event.
            self._refusals += 1
            wait = self._pace.backoff_max / 4
            self._in_trouble(verdict, wait)
            self._put_aside(batch, now, wait)
        if self._refusals > _REFUSALS_BEFORE_HOLD:
            reason = f"{verdict.reason}, whatever we send"
            self._hold(Verdict(Action.HOLD, reason, "see what stands between us and Polar"), now)

    def _suspect(self, batch: Batch, verdict: Verdict, now: float, asked: float) -> None:
        """The server failed: either it is in trouble, or this batch breaks it."""
        others_passed = self._passed > batch.failed_at
        self._count_failure(batch)
        if batch.events > 1 and others_passed:
            self._again.extendleft(reversed(batch.halves()))
        elif batch.events == 1 and self._certain(batch):
            self._bury(batch, [Fault(verdict.reason, [])], verdict.status)
        else:
            wait = self._pace.failed(now, asked)
            self._in_trouble(verdict, wait)
            self._put_aside(batch, now, wait)

    def _put_aside(self, batch: Batch, now: float, wait: float) -> None:
        """Let others go before a batch that failed without a reason."""
        self._suspects.append((now + wait, batch))
        doubted = self._blamed(batch) or (batch.events > 1 and batch.failed_at > batch.doubted_at)
        others = self._again or (self._fresh_work() and len(self._suspects) <= _MAX_SUSPECTS)
        if doubted and not others:
            # Nothing else could show that the server works: ask it about nothing.
            self._send(None, now)

    def _probed(self, result: _Result) -> None:
        """An empty batch came back: if the server took it, it works, and the suspects are to blame."""
        outcome = result.outcome
        if not isinstance(outcome, Answer) or judge(outcome, 0).action is not Action.SETTLE:
            self._failed = max(self._failed, result.number)
            return
        self._worked = max(self._worked, result.number)
        for _ in range(len(self._suspects)):
            when, batch = self._suspects.popleft()
            if batch.events > 1:
                self._again.extend(batch.halves())
            else:
                self._suspects.append((when, batch))

    def _bury(self, batch: Batch, faults: list[Fault], status: int) -> None:
        """Make dead letters of a whole batch."""
        now = self._clock.wall()
        letters = [
            _dead_letter(batch.line(index), fault, batch, status, now) for index, fault in enumerate(faults)
        ]
        self._writer.settle(batch.settlements(dead=letters))
        self._log.warning(
            "events became dead letters",
            count=len(letters),
            status=status,
            batch=batch.id,
            reason=faults[0].reason,
            hint="see `agent dead list`",
        )

    # -- status ------------------------------------------------------------------------

    def _show(self, now: float) -> None:
        """Publish how delivery stands."""
        pace = self._pace
        wait = pace.wait(now)
        if pace.held:
            state = "blocked"
        elif pace.throttled:
            state = "throttled"
        elif pace.failures:
            state = "retrying"
        elif self._in_flight:
            state = "sending"
        else:
            state = "idle"
        waiting = wait if state in ("blocked", "throttled", "retrying") and self._anything_waits() else None
        self.delivery = Delivery(
            state, self._trouble, self._last_success, waiting, len(self._held), self._requests
        )


class _Named(msgspec.Struct):
    name: str = ""
    external_id: str | None = ""


def _dead_letter(line: bytes, fault: Fault, batch: Batch, status: int, now: float) -> DeadLetter:
    """Return the dead letter of one event."""
    try:
        named = msgspec.json.decode(line, type=_Named)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        named = _Named()
    return DeadLetter(
        event=line.decode(),
        external_id=named.external_id or "",
        name=named.name,
        status=status,
        reason=fault.reason,
        errors=fault.errors,
        attempts=batch.attempts,
        first_attempt=batch.first_attempt,
        died_at=now,
        batch=batch.id,
    )
