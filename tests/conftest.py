from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.processes import Product

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Product]:
    """Emulator, daemon and commands in a directory of their own; nothing runs yet."""
    product = Product(tmp_path)
    yield product
    product.close()
