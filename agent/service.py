"""The daemon: wires everything, starts it in order, stops it in order.

Threads: collector (reads, checks), writer (commits, answers), flusher (decides what is
sent), senders (one request each), api (answers commands), and the main thread, which
waits for signals and sees that the others live.

Stopping: listen no more and take what has arrived; make it durable and acknowledge it;
deliver until `shutdown_timeout`; leave the rest on disk.
"""

from __future__ import annotations

import gc
import os
import threading
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.api.sockets import ApiSockets
from agent.collector.peers import AllowList
from agent.collector.sockets import adopt, listen
from agent.collector.unix import Collector
from agent.errors import AgentError, hint_of, reason_of
from agent.history import History
from agent.logs import configure, get
from agent.pipeline import Pipeline
from agent.process import keep_freed_memory, measure, raise_file_limit
from agent.prometheus import render
from agent.reload import changes, merged
from agent.settings_child import load_anew
from agent.signals import Signals
from agent.stats import Detail, Snapshot, stalled
from agent.systemd import Notifier, passed_sockets
from agent.units import counted
from agent.watch import Watch

if TYPE_CHECKING:
    from pathlib import Path

    from agent.api.server import Api
    from agent.clock import Clock
    from agent.settings import Settings
    from agent.tail.tail import Tail

_LOOK_SECONDS = 5.0
_FIRST_LOOK_SECONDS = 5.0  # at files, until it is durable; a disk that refuses does not keep us from serving
_LOST_SECONDS = 10.0
STOP_SECONDS = 30.0
"""How much longer than `shutdown_timeout` stopping may take; then the process ends all the same."""


class Service:
    """One daemon.

    Args:
        settings: all of them.
        clock: for time and waiting.
        config: the settings file of the command line, for loading the settings anew.

    Raises:
        AgentError: it cannot start, and why.
    """

    def __init__(self, settings: Settings, clock: Clock, config: Path | None = None) -> None:
        raise_file_limit()
        self._settings = settings
        self._config = config
        self._clock = clock
        self._log = get("service")
        self._started = clock.monotonic()
        self._history = History()
        self._watch: Watch | None = None
        self._api: Api | None = None
        self._signals = Signals()
        self._signals.take_hangups()
        self._notifier = Notifier(os.environ, os.getpid())
        self._allowed = AllowList(settings.allowed_users, settings.allowed_groups)
        self._damage: str | None = None
        self.pipeline = Pipeline(settings, clock, on_room=self._room_changed, on_damage=self._damage_found)
        passed = passed_sockets(os.environ, os.getpid())
        # Before the socket: who sees it takes the daemon for started, and may signal it. Not
        # sooner: to end at once is best while the queue is opened, which can take minutes.
        self._signals.take_stops()
        bound = adopt(passed, settings.socket_path) or listen(
            settings.socket_path,
            mode=settings.socket_mode,
            owner=settings.socket_owner,
            group=settings.socket_group,
        )
        try:
            self._api_sockets = ApiSockets.bind(settings, passed)
        except BaseException:
            bound.close()
            raise
        self._collector = Collector(
            bound,
            self.pipeline.checker,
            self.pipeline.seen,
            self.pipeline.writer,
            clock,
            server_now=self.pipeline.server_clock.now,
            max_line_bytes=settings.max_line_bytes,
            max_connections=settings.max_connections,
            allowed=self._allowed,
            meters=self.pipeline.meters,
        )

        self.tail = self._make_tail() if settings.tail else None

    def _make_tail(self) -> Tail:
        """Bring the reading of files in, for those who want it."""
        from agent.tail.tail import Tail  # noqa: PLC0415  # see above

        pipeline = self.pipeline
        return Tail(
            self._settings.tail,
            pipeline.checker,
            pipeline.writer,
            pipeline.queue,
            self._clock,
            seen=pipeline.seen,
            server_now=pipeline.server_clock.now,
            queue_max_bytes=self._settings.queue_max_bytes,
            room_for_letters=lambda: pipeline.flusher.room_for_letters,
        )

    def run(self) -> int:
        """Serve until a signal comes; return the exit code."""
        try:
            api = self._start()
        except Exception as error:  # noqa: BLE001  # whatever it is
            # Threads that run already would keep the process; what was acknowledged is on disk.
            hint = hint_of(error)
            trace = None if hint else error
            self._log.error("the daemon cannot start", reason=reason_of(error), hint=hint, exc_info=trace)
            os._exit(1)
        assert self._watch is not None  # noqa: S101  # it was made at the start
        code = self._wait(self._watch)
        # A thread that does not end must not keep the process: all that was acknowledged is on disk.
        patience = _LOST_SECONDS if code else self._settings.shutdown_timeout + STOP_SECONDS
        threading.Thread(target=self._end, args=(patience,), name="end", daemon=True).start()
        self._notifier.stopping(patience)
        self._stop()
        api.stop()
        return code

    def _start(self) -> Api:
        """Start everything in order."""
        self.pipeline.start()
        self._collector.start()
        if self.tail is not None:
            self.tail.start()
            self.tail.wait_for_first_look(_FIRST_LOOK_SECONDS)
        settings = self._settings
        self._log.info(
            "ready",
            version=__version__,
            pid=os.getpid(),
            socket=str(settings.socket_path),
            queue=str(settings.queue_dir),
            server=settings.server_url,
            pending=self.pipeline.queue.books().pending,
        )
        problem = self.pipeline.token.problem
        if problem:
            self._log.error("nothing can be delivered: events stay in the queue", reason=problem)
        # After the socket, since the HTTP server takes its time to be imported.
        from agent.api.server import Api  # noqa: PLC0415

        api = self._api = Api(settings, self._api_sockets, self._clock, self, self._allowed)
        api.start()
        self._watch = Watch(
            {
                "writer": self.pipeline.writer,
                "flusher": self.pipeline.flusher,
                "collector": self._collector,
                "api": api.server,
                **({} if self.tail is None else {"tail": self.tail}),
            }
        )
        # What was made so far stays: the collector of garbage need not look at it again.
        gc.collect()
        gc.freeze()
        keep_freed_memory()
        self._notifier.ready(self._in_a_line())
        return api

    def _end(self, seconds: float) -> None:
        """End the process after some time, whatever it does then."""
        self._clock.wait(threading.Event(), seconds)
        self._log.error("stopping takes too long: ending at once", hint="what was acknowledged is on disk")
        os._exit(1)

    def _wait(self, watch: Watch) -> int:
        """Wait for the end; return the exit code."""
        look = _LOOK_SECONDS
        if self._notifier.watchdog_seconds is not None:
            look = min(look, self._notifier.watchdog_seconds / 3)
        while True:
            self._signals.wait(look)
            reload = self._signals.take_reload()
            if self._signals.stops:
                return 0
            if self._damage is not None:
                self._log.error(
                    "the queue is damaged: stopping, as when_damaged says",
                    found=self._damage,
                    hint="nothing was changed; `agent queue verify` tells more, and with "
                    'when_damaged = "rescue" the next start rescues what can be read',
                )
                return 1
            watch.look()
            lost = watch.lost()
            if lost is not None:
                self._log.error("the agent cannot go on: it ends, to be started again", reason=lost)
                return 1
            if self._history.due(self._clock.monotonic()):
                self._history.add(self._clock.wall(), self.pipeline.queue.books(), self.pipeline.oldest_age())
            if reload:
                self._reload()
            self._notifier.alive(self._in_a_line())

    def _reload(self) -> None:
        """Load the settings anew; what is wrong leaves the old ones in force."""
        self._notifier.reloading()
        try:
            new = load_anew(self._config)
            allowed = AllowList(new.allowed_users, new.allowed_groups)
        except AgentError as error:
            self._log.error(
                "the settings were not reloaded: the old ones stay in force",
                subject=error.subject,
                reason=error.reason,
                hint=error.hint,
            )
            self._notifier.ready(f"the old settings are in force: {error.subject}: {error.reason}")
            return
        now, later = changes(self._settings, new)
        self._settings = merged(self._settings, new)
        self._allowed.become(allowed)
        kind = self.pipeline.token.kind
        self.pipeline.configure(self._settings)
        if self.pipeline.token.kind != kind:
            later.append("access_token (that of a person and of an organization are checked differently)")
        self._collector.configure(max_connections=new.max_connections)
        configure(new.log_level, new.log_format)
        self._log.info("the settings were reloaded", changed=now)
        if later:
            self._log.warning("some settings need a restart: their old values are in force", settings=later)
        problem = self.pipeline.token.problem
        if problem:
            self._log.error("nothing can be delivered: events stay in the queue", reason=problem)
        self._notifier.ready(self._in_a_line())

    def _in_a_line(self) -> str:
        """Return how everything stands, for `systemctl status`."""
        delivery = self.pipeline.flusher.delivery
        pending = self.pipeline.queue.books().pending
        trouble = f": {delivery.last_error}" if delivery.last_error else ""
        return f"{counted(pending, 'event')} pending; delivery {delivery.state}{trouble}"

    @property
    def stopping(self) -> bool:
        """True once the daemon is about to stop."""
        return self._signals.stops > 0

    def status(self) -> dict[str, Any]:
        """Return how everything stands, as a document."""
        snapshot = self.snapshot()
        assert snapshot.detail is not None  # noqa: S101  # this daemon runs
        document = {**snapshot.document(), "health": snapshot.detail.health(), "notes": snapshot.notes()}
        return document if self.tail is None else document | {"tail": self.tail.status()}

    def sick(self) -> str | None:
        """Return why the daemon must be started again; None when it lives."""
        return self._watch.unwell() if self._watch else None

    def unready(self) -> str | None:
        """Return why no event can be made durable now; None when it can."""
        if self.stopping:
            return "the agent is stopping"
        return self.sick() or self.pipeline.writer.full

    def overview(self, *, history: bool) -> dict[str, Any]:
        """Return everything, with the last hour or without."""
        return self.snapshot().overview(self._history.document() if history else {})

    def metrics(self) -> str:
        """Return the metrics as Prometheus reads them."""
        snapshot = self.snapshot()
        assert snapshot.detail is not None  # noqa: S101  # this daemon runs
        return render(snapshot, snapshot.detail)

    def snapshot(self) -> Snapshot:
        """Return how everything stands."""
        pipeline, now = self.pipeline, self._clock.monotonic()
        books, oldest = pipeline.queue.books(), pipeline.oldest_age()
        delivery, api = pipeline.flusher.delivery, self._api
        detail = Detail(
            sick=self.sick(),
            unready=self.unready(),
            stalled=stalled(books, oldest, delivery, self._clock.wall()),
            meters=pipeline.meters,
            connections={
                "events": self._collector.connections,
                "api": 0 if api is None else api.server.connections,
            },
            peers_refused={
                "events": self._collector.door.refused,
                "api": 0 if api is None else api.door.refused,
            },
            queue_max_bytes=self._settings.queue_max_bytes,
            clock_offset=pipeline.server_clock.offset,
            process=measure(),
            started_at=self._clock.wall() - (now - self._started),
        )
        return Snapshot(
            self._settings.queue_dir, books, oldest, delivery, os.getpid(), now - self._started, detail
        )

    def _stop(self) -> None:
        """Stop everything in order."""
        pipeline = self.pipeline
        self._log.info("stopping", pending=pipeline.queue.books().pending)
        if self.tail is not None:
            self.tail.stop()
        self._collector.stop()
        # A damaged queue that is not to be mended is left as it is.
        seconds = self._settings.shutdown_timeout if self._damage is None else 0.0
        flusher = pipeline.flusher
        pipeline.drain(seconds, give_up=lambda: self._signals.stops > 1 or not flusher.alive)
        pipeline.stop()
        self._collector.close()
        pending = pipeline.queue.books().pending
        self._log.info("stopped", pending=pending)

    def _room_changed(self) -> None:
        """Tell the collector, which is made after the writer. Who reads files looks each second."""
        self._collector.room_changed()

    def _damage_found(self, found: str) -> None:
        """Have the main thread stop, since the queue is damaged and not to be mended."""
        self._damage = found
        self._signals.wake()
