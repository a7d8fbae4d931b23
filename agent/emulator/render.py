"""How events and their names are read back."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from agent.emulator.answers import from_micros
from agent.emulator.options import ORGANIZATION_ID, Customer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.emulator.store import NameStatistics, StoredEvent


def event_json(event: StoredEvent, customers: Mapping[str, Customer]) -> dict[str, Any]:
    """Return an event as it is read back; it has no `external_id`."""
    customer = next(
        (
            known
            for known in customers.values()
            if str(known.id) == event.customer_id
            or (known.external_id is not None and known.external_id == event.external_customer_id)
        ),
        None,
    )
    return {
        "id": event.id,
        "timestamp": from_micros(event.timestamp),
        "organization_id": str(ORGANIZATION_ID),
        "customer_id": event.customer_id,
        "customer": None if customer is None else _customer_json(customer),
        "external_customer_id": event.external_customer_id,
        "member_id": event.member_id,
        "external_member_id": event.external_member_id,
        "child_count": event.child_count,
        "parent_id": event.parent_id,
        "label": event.name,
        "name": event.name,
        "source": "user",
        "metadata": json.loads(event.metadata),
    }


def name_json(name: NameStatistics) -> dict[str, Any]:
    """Return an event name as it is read back; its times are cut to milliseconds."""
    return {
        "name": name.name,
        "label": name.name,
        "source": "user",
        "occurrences": name.occurrences,
        "first_seen": from_micros(name.first_seen // 1000 * 1000),
        "last_seen": from_micros(name.last_seen // 1000 * 1000),
    }


def _customer_json(customer: Customer) -> dict[str, Any]:
    email = f"{customer.external_id or customer.id}@example.com"
    gravatar = hashlib.sha256(email.lower().encode()).hexdigest()
    return {
        "id": str(customer.id),
        "created_at": "2026-01-01T00:00:00Z",
        "modified_at": None,
        "metadata": {},
        "external_id": customer.external_id,
        "email": email,
        "email_verified": False,
        "type": "individual",
        "name": None,
        "billing_name": None,
        "billing_address": None,
        "tax_id": None,
        "locale": None,
        "organization_id": str(ORGANIZATION_ID),
        "default_payment_method_id": None,
        "deleted_at": None,
        "first_user_event_at": None,
        "avatar_url": f"https://www.gravatar.com/avatar/{gravatar}?d=404",
    }
