"""How small PostgreSQL would make a text: the size that its `pglz` compression comes to.

It compresses what goes into an index row as well, so that an id of 5,000 equal letters
fits into an index while one of 3,000 random ones does not. Only the size matters here:
nothing is written out, and nothing can be read back. Pure.

The format: items in groups of eight, each group led by a byte that tells which of them
are literal bytes and which are references: 3 to 273 bytes seen up to 4,094 bytes ago,
in two bytes, or in three when longer than 17. References are looked for by a hash of
the next four bytes, newest first; with each candidate that was looked at, a shorter
match is good enough. It gives up when nothing repeats in the first KiB, or when less
than a quarter is saved.
"""

from __future__ import annotations

_WINDOW = 0x0FFF
_SHORTEST_MATCH, _LONGEST_MATCH = 3, 273
_LONGEST_IN_TWO_BYTES = 17
_GOOD_MATCH = 128
_GOOD_MATCH_DROP = 10  # percent for each candidate looked at
_GIVE_UP_WITHOUT_MATCH = 1024  # bytes of output
_ITEMS_IN_GROUP = 8
_HASH_MASK = 8191  # as for any input of a KiB and more
_MAX_LOOKS = 200_000


def compressed_size(data: bytes, limit: int) -> int | None:
    """Return the size of `data` compressed.

    Args:
        data: what would be compressed; a KiB or more, the hash being that of long inputs.
        limit: a size over this need not be exact: the search stops there.

    Returns:
        The size; some number over `limit` when it is over it; len(data) when PostgreSQL
        would not compress it. None when telling takes too long: time is bounded to
        tenths of a second, also for data made to be slow.
    """
    most = len(data) * 3 // 4
    history = _History(data)
    position = size = items = 0
    matched = False
    while position < len(data) and size <= limit:
        if size >= most or (size >= _GIVE_UP_WITHOUT_MATCH and not matched):
            return len(data)
        length = history.longest_match(position)
        if history.looks > _MAX_LOOKS:
            return None
        size += items % _ITEMS_IN_GROUP == 0
        items += 1
        if length < _SHORTEST_MATCH:
            size += 1
            length = 1
        else:
            size += 2 if length <= _LONGEST_IN_TWO_BYTES else 3
            matched = True
        history.add(position, position + length)
        position += length
    return size if size < most else len(data)


class _History:
    """Where each hash was seen, newest first.

    Attributes:
        looks: candidates looked at so far, which is what takes the time.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._signed = memoryview(data).cast("b")  # bytes count as signed, as in C
        self._newest: dict[int, int] = {}
        self._before = [-1] * len(data)
        self.looks = 0

    def longest_match(self, position: int) -> int:
        """Return the length of what the search finds for the bytes from `position` on."""
        length = 0
        good = _GOOD_MATCH
        candidate = self._newest.get(self._hash(position), -1)
        while candidate >= 0 and position - candidate < _WINDOW:
            self.looks += 1
            length = max(length, self._common(candidate, position))
            candidate = self._before[candidate]
            if length >= good:
                break
            good -= good * _GOOD_MATCH_DROP // 100
        return length

    def add(self, start: int, stop: int) -> None:
        """Remember the positions from `start` up to `stop`."""
        for position in range(start, stop):
            key = self._hash(position)
            self._before[position] = self._newest.get(key, -1)
            self._newest[key] = position

    def _hash(self, position: int) -> int:
        four = self._signed[position : position + 4].tolist()
        if len(four) < 4:
            return four[0] & _HASH_MASK
        return ((four[0] << 6) ^ (four[1] << 4) ^ (four[2] << 2) ^ four[3]) & _HASH_MASK

    def _common(self, earlier: int, later: int) -> int:
        """Return how many bytes are equal from both places on, up to the longest match."""
        data = self._data
        low, high = 0, min(_LONGEST_MATCH, len(data) - later)
        while low < high:
            middle = (low + high + 1) // 2
            if data[earlier + low : earlier + middle] == data[later + low : later + middle]:
                low = middle
            else:
                high = middle - 1
        return low
