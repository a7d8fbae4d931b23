"""With a full buffer `send(…, wait=5)` came back at once, as if the event were on disk: it was dropped."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from support.processes import PATIENCE, Product

from agent.client import Client, NotSafeError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("when_full", ["drop", "block"])
def test_an_event_that_found_no_room_is_not_safe(tmp_path: Path, when_full: str) -> None:
    client = Client(tmp_path / "nobody", buffer_events=1, when_full=when_full)
    client.send("a", external_customer_id="c")

    with pytest.raises(NotSafeError, match="full"):
        client.send("a", external_customer_id="c", wait=0.1)

    assert client.counts == (1, 0, 0, 0)
    client.close(0)


def test_who_waits_for_the_ack_waits_for_room_as_well(product: Product) -> None:
    with Client(product.socket, buffer_events=1) as client:
        client.send("first", external_customer_id="c")
        starting = threading.Thread(target=product.start_daemon)
        starting.start()

        client.send("second", external_customer_id="c", wait=PATIENCE)

        starting.join()
        assert client.counts == (0, 2, 0, 0)
    assert product.status()["ledger"]["accepted"] == 2
