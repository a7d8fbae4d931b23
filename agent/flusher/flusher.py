"""The thread that decides what is sent and carries out what the answers mean."""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import TYPE_CHECKING

from agent.answer import Answer, NoAnswer
from agent.batch import NOTHING, Batch
from agent.errors import QueueError
from agent.flusher.delivery import WELL, Delivery, since, state_of
from agent.flusher.duplicates import may_be_stored, sent_before
from agent.flusher.graveyard import LOOK_SECONDS, Graveyard
from agent.flusher.guests import Guests
from agent.flusher.haste import Haste
from agent.flusher.held import Held, due_of
from agent.flusher.intake import Intake, Options
from agent.flusher.senders import Sender, Senders
from agent.flusher.sizes import TOO_LARGE, Sizes
from agent.flusher.suspicion import Evidence, Fate, Suspects, alone
from agent.flusher.telling import Telling
from agent.guess import may_be_ours
from agent.logs import get
from agent.meters import Meters
from agent.pace import Pace, retry_after
from agent.verdict import Action, Fault, Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.chunk import Chunk
    from agent.clock import Clock
    from agent.flusher.intake import Room
    from agent.flusher.senders import Result
    from agent.queue import Queue
    from agent.server_clock import ServerClock
    from agent.writer import Writer

_LONE_SECONDS = 1.0
_ASIDE_SECONDS = 0.05
_TOKEN_CHECK_SECONDS = 2.0
_SETTLE_SECONDS = 1.0


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
        meters: Meters | None = None,
    ) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._server_clock = server_clock
        self._pace = pace
        self._options = options
        self._token = token
        self._meters = meters or Meters()
        self.patient = False
        """True while the thread does what may take very long."""
        self._log = get("flusher")
        self._wake = threading.Event()
        self._guests = Guests(clock, self._wake)
        self._senders = Senders(connect, clock, self._wake)
        self._held = Held()
        self._graveyard = Graveyard(store, writer, clock, options.max_dead_letters)
        self._first_key = store.books().next_key  # what is before it may have been sent by a run before
        self._telling = Telling(clock)
        self._intake = Intake(
            store, writer, self._held, clock=clock, server_clock=server_clock, options=options
        )
        self._sizes = Sizes(options)
        self._again: deque[Batch] = deque()  # to be sent before anything new, in order
        self._suspects = Suspects()
        self._evidence = Evidence()
        self._searched = 0  # how many events were pending when the queue was looked through
        self._token_seen: str | None = None
        self._unnoticed = 0  # events committed since the last look
        self._enough: float = 1  # how many of them are worth another look
        self._haste = Haste()
        self._answered = False  # by whoever
        self._guessing = False  # the first request with stamps that are guesses is under way
        self._asked_until = -math.inf  # the server asked for so much time
        self._stopping = False
        self._last_success: float | None = None
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
        """Get chunks that were just written, so that they need not be read."""
        self._intake.offer(keys, chunks)

    def place(self, seconds: float) -> bool:
        """Wait for a place in the rate budget for another request; False when there is none in time."""
        return self._guests.ask(seconds)

    @property
    def room_for_letters(self) -> int:
        """How many more dead letters may be kept; from any thread."""
        return self._graveyard.room

    def poke(self) -> None:
        """Make the thread move, though there may be nothing to do."""
        self._wake.set()

    def hurry(self) -> int:
        """Deliver everything without waiting for full batches, until `relax`; what is wrong is tried at once.

        Returns:
            The number of this demand: when `Delivery.tried` has come to it, the state is no older.
        """
        demand = self._haste.begin()
        self._wake.set()
        return demand

    def relax(self) -> None:
        """End of `hurry`."""
        self._haste.end()

    def configure(self, options: Options) -> None:
        """Go by other settings from now on."""
        self._sizes.configure(options)
        self._options = options
        self._intake.configure(options)
        self._graveyard.most = options.max_dead_letters
        self._wake.set()

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
        self._senders.close()
        self._take_results()
        self._store.close()

    def step(self) -> float | None:
        """Do what can be done now; return the seconds until there may be more, None for until woken."""
        now = self.beat = self._clock.monotonic()
        self._unnoticed = 0
        self._enough = math.inf
        self._take_results()
        if self._haste.news():
            self._try_now(now)
        if self._graveyard:
            self._graveyard.work()
        self._look_at_token()
        self._serve_guests(now)
        wait = self._dispatch(now)
        if self._graveyard:
            wait = LOOK_SECONDS if wait is None else min(wait, LOOK_SECONDS)
        guest = self._serve_guests(now)
        if guest is not None:
            wait = guest if wait is None else min(wait, guest)
        self._show(now)
        # What was committed since the queue was read had no one to wake.
        return 0.0 if self._unnoticed >= self._enough else wait

    def _dispatch(self, now: float) -> float | None:
        """Send what may be sent; return the seconds until the next look."""
        while not self._graveyard.crowded:
            in_flight = self._senders.in_flight
            # The first answer tells Polar's time: what comes behind it is stamped right.
            alone = self._pace.probing or self._guessing
            if in_flight >= (1 if alone else self._options.max_in_flight):
                return None  # an answer wakes us
            pause = self._pace.wait(now)
            if pause > 0:
                if not self._anything_waits():
                    self._enough = 1
                    return self._held.wait(self._server_clock.now())
                self._pace.lacked(now)
                return min(pause, _TOKEN_CHECK_SECONDS) if self._pace.held else pause
            batch, wait = self._next_batch(now)
            if batch is None:
                waits = wait is not None or in_flight or self._graveyard
                return wait if waits else self._search()
            self._send(batch, now)
        return LOOK_SECONDS

    def _serve_guests(self, now: float) -> float | None:
        """Give out places in the budget; return the seconds until there may be another one."""
        if not self._guests:
            return None
        return self._guests.serve(self._pace, now, self._evidence.sent, waits=self._anything_waits())

    def _search(self) -> float | None:
        """See that nothing is pending when nothing is left to do; return the seconds until the next look.

        Damage can hide chunks: the queue is looked through, mended if need be, and read once more.
        """
        settling = self._writer.settling
        pending = self._store.books().pending
        if settling and pending:
            return _SETTLE_SECONDS
        if not pending or pending == self._searched or self._intake.waits:
            return None
        self._searched = pending
        self._intake.rewind()
        try:
            self.patient = True
            self._store.audit()
        except QueueError as error:
            self._log.error("events are pending and cannot be found", reason=error.reason, hint=error.hint)
        finally:
            self.patient = False
        return 0.0

    def _anything_waits(self) -> bool:
        """Tell whether there is something that could be sent now but for the pace."""
        return bool(self._again or self._suspects or self._intake.waits)

    def _next_batch(self, now: float) -> tuple[Batch | None, float | None]:
        """Choose what goes next; None with the seconds until there is something."""
        room = self._sizes.room(now)
        self._release_held(room)
        if self._again:
            return self._fit(self._again.popleft(), room), None
        due = self._suspects.due(now)
        if due and (self._suspects.many or self._suspects.heavy or not self._intake.waits):
            return self._fit(self._suspects.pop(), room), None
        if self._suspects.heavy:
            return None, self._suspects.wait(now)
        # When requests are what is scarce, each goes out full.
        fresh = self._intake.take(
            room, self._senders.in_flight, urgent=self._haste.urgent, fill=self._pace.scarce
        )
        if isinstance(fresh, Batch):
            return fresh, None
        self._enough = fresh.events
        if due:
            return self._fit(self._suspects.pop(), room), None
        waits = (fresh.seconds, self._held.wait(self._server_clock.now()), self._suspects.wait(now))
        return None, min((seconds for seconds in waits if seconds is not None), default=None)

    def _fit(self, batch: Batch, room: Room) -> Batch:
        """Cut off what is too much by now."""
        first, rest = batch.fit(room.events, room.bytes)
        if rest is not None:
            self._again.appendleft(rest)
        return first

    def _release_held(self, room: Room) -> None:
        """Take up what has become due; what is more than a batch can wait where it is."""
        now = self._server_clock.now()
        while self._held.due(now) and not self._intake.fills(room):
            item = self._held.pop()
            if isinstance(item, Batch):
                self._again.append(item)
            elif not self._intake.read_chunk(item):
                self._held.add(now + _SETTLE_SECONDS, item)

    # -- requests ----------------------------------------------------------------------

    def _send(self, batch: Batch | None, now: float) -> None:
        """Hand a request to a sender thread."""
        if batch is not None:
            self._correct(batch)
            self._guessing = batch.guessed and not self._answered
            self._sizes.sent(batch)
            batch.attempts += 1
            batch.first_attempt = batch.first_attempt or self._clock.wall()
        self._pace.take(now)
        self._evidence.sent += 1
        self._senders.send(self._evidence.sent, batch, NOTHING if batch is None else batch.body())

    def _correct(self, batch: Batch) -> None:
        """Correct what was stamped before Polar's time was known, if it is known now."""
        batch.correct(self._server_clock.correction, self._server_clock.now())

    def _try_now(self, now: float) -> None:
        """Wait no longer for what may be mended by now; but for what the server asked us to."""
        if self._pace.throttled or now < self._asked_until:
            self._haste.done()
        else:
            self._pace.retry_now()
            self._suspects.hasten()

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
        for result in self._senders.results():
            self._haste.done()
            self._answered |= isinstance(result.outcome, Answer)
            self._meters.answered(
                result.outcome.kind if isinstance(result.outcome, NoAnswer) else str(result.outcome.status),
                0 if result.batch is None else result.batch.events,
                result.answered_at - result.sent_at,
            )
            if isinstance(result.outcome, Answer) and result.outcome.server_time is not None:
                self._server_clock.learn(result.outcome.server_time, result.sent_at, result.answered_at)
                self._telling.clock(self._server_clock.offset)
            if self._stopping and isinstance(result.outcome, NoAnswer):
                continue  # broken off; its events stay in the queue
            if result.batch is None:
                self._probed(result)
            else:
                self._carry_out(result, result.batch)

    def _carry_out(self, result: Result, batch: Batch) -> None:  # noqa: C901  # a table
        """Do what the verdict on a batch says."""
        outcome = result.outcome
        verdict = judge(outcome, batch.events)
        now = self._clock.monotonic()
        batch.uncertain |= verdict.action is not Action.SETTLE and may_be_stored(outcome)
        untried = self._sizes.untried(batch)
        self._sizes.learn(result, batch, verdict, now, scarce=self._pace.scarce)
        asked = 0.0
        if isinstance(outcome, Answer):
            asked = retry_after(outcome.retry_after, self._server_clock.now())
            self._asked_until = max(self._asked_until, now + asked)
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
                self._suspect(batch, verdict, now, asked, untried=untried)
            case Action.RETRY:
                self._again.appendleft(batch)
                self._telling.fails(verdict, self._pace.failed(now, asked), self._pace.failures)
            case Action.THROTTLE:
                self._again.appendleft(batch)
                self._telling.fails(verdict, self._pace.too_fast(now, asked), self._pace.failures)
            case Action.HOLD:
                self._again.appendleft(batch)
                self._hold(verdict, now)

    def _hold(self, verdict: Verdict, now: float) -> None:
        """Send nothing until somebody mends it, but for a look now and then."""
        self._token_seen = self._token()
        self._telling.fails(verdict, self._pace.hold(now), self._pace.failures)

    def _settle(self, number: int, batch: Batch, delivered: int, duplicates: int) -> None:
        """All of a batch is at Polar."""
        resent = sent_before(batch, duplicates, self._first_key)
        self._writer.settle(batch.settlements(delivered=delivered, duplicates=duplicates, resent=resent))
        self._telling.duplicates(batch, resent, duplicates - resent)
        self._telling.works(self.delivery.since, self._store.books().pending)
        self._last_success = self._clock.wall()
        arrived = batch.parts[0].lease.chunk.arrived_ms / 1000
        self._meters.age.observe(max(0.0, self._last_success - arrived), batch.events)
        self._pace.succeeded()
        self._evidence.took(number, batch)

    def _sift(self, batch: Batch, verdict: Verdict) -> None:
        """Bury or hold the named events; send the rest again, with what we stamped too late by a guess."""
        faults = verdict.faults
        batch.spoil()
        guessed = batch.guessed and self._server_clock.correction is not None
        dead = [index for index in sorted(faults) if not faults[index].future]
        early = faults.keys() - dead
        ours = {index for index in early if guessed and may_be_ours(batch.line(index))}
        if dead:
            self._bury(batch.choose(dead), [faults[index] for index in dead], verdict.status)
        for index in sorted(early - ours):
            due = due_of(batch.line(index), self._server_clock.now())
            self._held.add(due, batch.choose([index], f".{index}"))
        rest = [index for index in range(batch.events) if index in ours or index not in faults]
        if rest:
            self._again.appendleft(batch.choose(rest, "s"))
        # The server works; whether it takes our events, the rest will tell.
        self._pace.succeeded()

    def _refused(self, batch: Batch, verdict: Verdict, now: float) -> None:
        """The server works and does not want the batch; halve it until the bad event is alone."""
        match self._evidence.after_refusal(batch, verdict.status):
            case Fate.HALVE:
                halves = batch.halves()
                if verdict.status == TOO_LARGE:
                    halves[0].spoil()  # nor do its halves when they pass
                self._again.extendleft(reversed(halves))
            case Fate.BURY:
                self._bury(batch, [Fault(alone(verdict), [])], verdict.status)
            case Fate.ASIDE:
                self._put_aside(batch, now, _LONE_SECONDS)
            case Fate.WAIT:
                wait = self._pace.backoff_max / 4
                self._telling.fails(verdict, wait, self._pace.failures)
                self._put_aside(batch, now, wait)
        if self._evidence.all_refused:
            reason = f"{verdict.reason}, whatever we send"
            self._hold(Verdict(Action.HOLD, reason, "see what stands between us and Polar"), now)

    def _suspect(self, batch: Batch, verdict: Verdict, now: float, asked: float, *, untried: bool) -> None:
        """The server failed: either it is in trouble, or this batch breaks it."""
        match self._evidence.after_failure(batch, untried=untried):
            case Fate.HALVE:
                self._again.extendleft(reversed(batch.halves()))
            case Fate.BURY:
                self._bury(batch, [Fault(alone(verdict), [])], verdict.status)
            case Fate.ASIDE if not asked:
                self._put_aside(batch, now, _LONE_SECONDS if batch.events == 1 else _ASIDE_SECONDS)
            case _:
                wait = self._pace.failed(now, asked)
                self._telling.fails(verdict, wait, self._pace.failures)
                self._put_aside(batch, now, wait)

    def _put_aside(self, batch: Batch, now: float, wait: float) -> None:
        """Let others go before a batch that failed without a reason."""
        self._suspects.add(now + wait, batch)
        others = self._again or (self._intake.waits and not self._suspects.many)
        if self._evidence.doubted(batch) and not others:
            # Nothing else could show that the server works: ask it about nothing.
            self._send(None, now)

    def _probed(self, result: Result) -> None:
        """An empty batch came back: if the server took it, it works, and the suspects are to blame."""
        outcome = result.outcome
        took = isinstance(outcome, Answer) and judge(outcome, 0).action is Action.SETTLE
        self._evidence.probed(result.number, took=took)
        if took:
            self._again.extend(self._suspects.halve())

    def _bury(self, batch: Batch, faults: list[Fault], status: int) -> None:
        """Make dead letters of a whole batch."""
        batch.spoil()
        self._correct(batch)
        self._graveyard.bury(batch, faults, status)

    # -- status ------------------------------------------------------------------------

    def _show(self, now: float) -> None:
        """Publish how delivery stands."""
        if self._graveyard.crowded or not (self._senders.in_flight or self._anything_waits()):
            self._haste.done()  # there is nothing to try
        state = "blocked" if self._graveyard.crowded else state_of(self._pace, self._senders.in_flight)
        slow = None
        if state in WELL and self._anything_waits() and (rate := self._pace.lowered) is not None:
            state, slow = (
                "throttled",
                f"the server's rate limit is used up: {rate:.0f} requests a minute go out",
            )
        wait = self._pace.wait(now)
        if state == "idle" and self._telling.trouble is not None and self._suspects:
            # Only what was put aside waits, and for its own time.
            state, wait = "retrying", max(wait, self._suspects.wait(now) or 0.0)
        waits = state in ("blocked", "throttled", "retrying") and self._anything_waits()
        self.delivery = Delivery(
            state,
            self._telling.trouble or self._intake.trouble or self._graveyard.trouble or slow,
            self._last_success,
            wait if waits else None,
            len(self._held),
            self._evidence.sent,
            since(self.delivery, state, self._clock.wall()),
            self._sizes.works,
            self._haste.tried,
        )
