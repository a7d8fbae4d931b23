"""The flusher: takes the oldest chunks, makes batches, sends them, and settles the answers.

- `intake`: from the queue to the next batch; chunks are read once, in order.
- `held`: what waits for its own time.
- `haste`: who wants everything delivered now.
- `senders`: the threads that do nothing but one request at a time.
- `suspicion`: whether a batch is bad or the server is in trouble. Pure.
- `sizes`: how large batches may be, as the answers teach.
- `letters`: what is kept of an event that Polar refuses for good. Pure.
- `delivery`: how it stands, for status.
- `telling`: what the log says of it.
- `flusher`: the one thread that decides and carries out.

Nothing is settled before its evidence is there: a row is deleted after the 200 that
counts its events, or in the transaction that makes a dead letter of the last of them.
"""

from agent.flusher.delivery import Delivery
from agent.flusher.flusher import Flusher
from agent.flusher.intake import Options
from agent.flusher.senders import Sender

__all__ = ["Delivery", "Flusher", "Options", "Sender"]
