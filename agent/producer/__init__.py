"""The sending side of the socket: every line arrives, or the caller learns which did not.

`Producer` is what programs use. It promises, in this order:

- **A resend is harmless.** The connection may break after the daemon stored a line and
  before its acknowledgement came through, so whatever is not acknowledged is sent again.
  An event without an `external_id` would then be stored, and billed, twice: therefore
  `stamp` gives it one before it is sent for the first time, and what `window` keeps for
  sending again are the stamped bytes. (The id counts towards the line's length.)
- **Memory is bounded**: a window of lines that are not acknowledged, plus one block.
- **No deadlock**: one loop writes and reads; a full socket never leaves answers unread.

No threads, no printing: `agent.cli.send` adds files, progress and messages.
"""

from agent.producer.client import Producer
from agent.producer.window import Refusal

__all__ = ["Producer", "Refusal"]
