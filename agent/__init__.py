"""A background agent that takes usage events and delivers each one to Polar exactly once.

The way of an event, and the module that each step is in::

    producer ── Unix socket ──► collector ──► writer ──► queue ──► flusher ──► Polar
                                framing       chunk      disk      batch       polar
                                event                              verdict
                                                                   pace

What must always hold:

- An ack leaves after the commit that holds its event (`writer`), and a row is deleted
  after the answer that counts its events (`flusher`).
- Whatever must be true together is one transaction (`queue.Change`), the ledger included.
- Every event has an `external_id` before it is durable, so sending it again is harmless.
- Decisions are pure functions: what is taken (`event`), what goes together (`batch`), what
  an answer means (`verdict`), how long to wait (`pace`). They know neither I/O nor time.

Threads: the collector reads and checks; the writer alone changes the queue, in groups,
and answers producers; the flusher decides what is sent; senders carry one request each;
the main thread waits for signals.

Imports point one way: errors and clock, the pure core, queue, writer, collector and
polar, flusher, pipeline, service, commands.
"""

__version__ = "0.1.0"
