"""What came lately, for a source that seldom has to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Sequence

    from agent.seen import Lasting


class InOrder:
    """Asks `agent.seen`; from the first question to the end of the block, no other source does.

    Lines that name no id of their own ask nothing, and hold nobody up.

    Args:
        seen: what came lately.
        order: see `agent.writer.Writer`.
    """

    def __init__(self, seen: Lasting, order: threading.Lock) -> None:
        self._seen = seen
        self._order = order
        self._alone = False

    def __enter__(self) -> Self:
        """Begin; nobody has to wait yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let other sources ask again."""
        if self._alone:
            self._alone = False
            self._order.release()

    def enter(self, ids: Sequence[str], block: bytes) -> bool:
        """See `agent.seen.Seen`."""
        return self._ours().enter(ids, block)

    def first_repeat(self, ids: Iterable[str]) -> int:
        """See `agent.seen.Seen`."""
        return self._ours().first_repeat(ids)

    def repeats(self, identity: str, line: bytes) -> bool | None:
        """See `agent.seen.Seen`."""
        return self._ours().repeats(identity, line)

    def ask(self, identity: str, line: bytes) -> bool | None:
        """See `agent.seen.Seen`."""
        return self._ours().ask(identity, line)

    def knows(self, identity: str) -> bool:
        """See `agent.seen.Seen`."""
        return self._ours().knows(identity)

    def _ours(self) -> Lasting:
        """Return what came lately, once nobody else adds to it."""
        if not self._alone:
            self._order.acquire()
            self._alone = True
        return self._seen
