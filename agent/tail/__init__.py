"""Events from files that other programs append to: each line once, through every kind of rotation.

The way of a line, and the module that each step is in::

    paths ──► arrivals ──► reading ──► writer
    glob      recognition  block       (one transaction: the lines, the refused ones
    watch     identity     taking       as dead letters, and the checkpoint)
                              │
                           endings

`shelf` holds these together, `tail` is the thread and decides when; `files` are those that are
there, `marks` how far each is read. While much is to be read, `helper` lets a second process do most of
`taking`.

What must always hold:

- A checkpoint moves with the lines before it, or not at all (`agent.queue.Change`).
- A line that carries no `external_id` gets one that follows from its file and its place in
  it (`identity`), so that reading it again, here or elsewhere, is harmless.
- Which file is which is decided by pure functions (`recognition`): never by name alone.
- A file is kept open until it is read to its end and nobody writes to it any more.
- A queue that is full stops the reading; it loses nothing.

None of this is imported where no `[[tail]]` is set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Table:
    """One `[[tail]]` of the settings.

    Attributes:
        path: absolute, with wildcards: `*`, `?`, `[…]`, and `**` for any directories.
        start: where to begin with files that are there when this path is looked at for the first time;
            those that come later are read from their beginning.
        defaults: fields for events that lack them; `metadata` key by key.
        exclude: of the files that `path` finds, those not to be read; a pattern without a slash is
            about the name alone.
    """

    path: str
    start: Literal["beginning", "end"] = "beginning"
    defaults: dict[str, Any] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
