"""Bytes of a message, whatever carries it: 4 an element (compressed: the true size), 8 a number beside it.

Names and framing are not counted."""

from __future__ import annotations

from raylora.core.tree import size
from raylora.core.types import Broadcast, ClientUpdate

ELEMENT_BYTES = 4
NUMBER_BYTES = 8


def bytes_of(message: Broadcast | ClientUpdate) -> int:
    """Bytes of a broadcast (adapter, base delta, extra trees) or of a client update (adapter, extra trees, its count of patients and
    its metrics). What a client keeps is in neither."""
    elements = size(message.adapter) + sum(size(tree) for tree in message.extra.values())
    if isinstance(message, Broadcast):
        return ELEMENT_BYTES * (elements + size(message.base_delta))
    numbers = NUMBER_BYTES * (1 + len(message.metrics))
    if message.adapter_bytes is None:
        return ELEMENT_BYTES * elements + numbers
    return message.adapter_bytes + ELEMENT_BYTES * (elements - size(message.adapter)) + numbers
