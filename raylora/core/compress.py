"""Lossy compression of what is sent, counted at its true size. It acts on the movement (what is sent minus what was received), and what
it loses is either unbiased (quantisation) or remembered and sent later (top-k with error feedback)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from raylora.core import tree as trees
from raylora.core.errors import InputError
from raylora.core.payload import ELEMENT_BYTES, NUMBER_BYTES
from raylora.core.types import ClientUpdate, Tree

Compress = Callable[[Tree, np.random.Generator], tuple[Tree, int]]
"""(movement, generator) to (what the receiver decodes, bytes sent)."""


def quantise(bits: int = 8) -> Compress:
    """Stochastic quantisation of each array to 2^bits - 1 steps between its extremes: E[decoded] = x (QSGD, arXiv 1610.02132, with
    steps between the extremes). Sends bits / 8 bytes an element, packed, and two numbers an array. Raises InputError unless bits is 1-16.
    """
    if not isinstance(bits, int) or not 1 <= bits <= 16:
        raise InputError(f"compress.bits: expected a whole number from 1 to 16, found {bits}")

    def compress(movement: Tree, generator: np.random.Generator) -> tuple[Tree, int]:
        decoded, sent_bytes = {}, 0
        for name in sorted(movement):
            array = np.asarray(movement[name], dtype=np.float64)
            low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
            step = (high - low) / (2**bits - 1)
            codes = np.floor((array - low) / step + generator.random(array.shape)) if step > 0 else np.zeros(array.shape)
            decoded[name] = low + step * np.clip(codes, 0, 2**bits - 1)
            sent_bytes += -(-array.size * bits // 8) + 2 * NUMBER_BYTES
        return decoded, sent_bytes

    return compress


def top_k(share: float) -> Compress:
    """The ceil(share * n) elements of largest magnitude over the whole tree (ties: the first), the others zero (Stich et al. 2018,
    arXiv 1809.07599). Sends a value and a 4-byte index each, all n without indices if that is less.
    Raises InputError unless 0 < share <= 1."""
    if not 0 < share <= 1:
        raise InputError(f"compress.share: expected a share in (0, 1], found {share}")

    def compress(movement: Tree, generator: np.random.Generator) -> tuple[Tree, int]:
        names = sorted(movement)
        flat = np.concatenate([np.asarray(movement[name], dtype=np.float64).ravel() for name in names])
        count = int(np.ceil(share * flat.size - 1e-9))
        kept = np.zeros_like(flat)
        largest = np.argsort(-np.abs(flat), kind="stable")[:count]
        kept[largest] = flat[largest].astype(np.float32)
        ends = np.cumsum([movement[name].size for name in names])
        parts = np.split(kept, ends[:-1])
        decoded = {name: part.reshape(movement[name].shape) for name, part in zip(names, parts, strict=True)}
        return decoded, min(2 * ELEMENT_BYTES * count, ELEMENT_BYTES * flat.size)

    return compress


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How updates are compressed, as plain values."""

    kind: str = "none"  # none, quantise, top_k
    bits: int = 8  # of quantise
    share: float = 1.0  # of top_k

    @property
    def compress(self) -> Compress | None:
        """The function, None for "none". Raises InputError for an option out of range."""
        if self.kind == "none":
            return None
        return quantise(self.bits) if self.kind == "quantise" else top_k(self.share)

    @property
    def remembers(self) -> bool:
        """Whether what is lost is kept and sent later; quantisation is unbiased without."""
        return self.kind == "top_k"


UNCOMPRESSED = Scheme()


@dataclass(frozen=True)
class Sent:
    """A compressed update, and what compression has lost so far (kept by the client)."""

    update: ClientUpdate
    error: Tree


def compressed(update: ClientUpdate, received: Tree, error: Tree, compress: Compress, generator: np.random.Generator) -> Sent:
    """The update as the server decodes it, with its true size. received: what the uploaded names were before training; error: what
    earlier rounds lost ({} at first). Error feedback: compress(movement + error), remember the rest (Karimireddy et al. 2019,
    arXiv 1901.09847)."""
    if not update.adapter:
        return Sent(update=update, error=error)
    movement = trees.subtract(update.adapter, received)
    wanted = {name: step + error[name] if name in error and error[name].shape == step.shape else step for name, step in movement.items()}
    decoded, sent_bytes = compress(wanted, generator)
    adapter = trees.freeze({name: np.asarray(received[name], dtype=np.float64) + step for name, step in decoded.items()})
    lost = trees.freeze({**error, **trees.subtract(wanted, decoded)})  # of names that go in other rounds (RoLoRA) it stays
    return Sent(update=replace(update, adapter=adapter, adapter_bytes=sent_bytes), error=lost)
