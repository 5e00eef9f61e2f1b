"""What crosses between processes as two things: a small header, and one flat array of all numbers.

Ray pays for every array of a message (about 0.1 ms each); a tree of fifty small factors would cost as many milliseconds as it has tensors.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ALIGNMENT = 64  # bytes
Packed = tuple[bytes, tuple[tuple[int, int], ...], np.ndarray]
"""header; (offset, length) of every buffer; all bytes"""


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, buffers: list[pickle.PickleBuffer], known: Mapping[int, int]) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffers.append)
        self.known = known

    def persistent_id(self, item: Any) -> int | None:
        return self.known.get(id(item)) if isinstance(item, np.ndarray) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, header: bytes, buffers: Sequence[np.ndarray], known: Sequence[np.ndarray]) -> None:
        super().__init__(io.BytesIO(header), buffers=buffers)
        self.known = known

    def persistent_load(self, index: int) -> np.ndarray:
        return self.known[index]


def pack(message: Any, known: Sequence[np.ndarray] = ()) -> Packed:
    """The message with all its arrays' bytes in one; an array that occurs twice is there once, one of `known` not at all."""
    header, buffers = io.BytesIO(), []
    _Pickler(header, buffers, {id(array): i for i, array in enumerate(known)}).dump(message)
    views = [buffer.raw() for buffer in buffers]
    places, end = [], 0
    for view in views:
        places.append((end, view.nbytes))
        end += -(-view.nbytes // ALIGNMENT) * ALIGNMENT
    flat = np.empty(end, np.uint8)
    for view, (start, length) in zip(views, places, strict=True):
        flat[start : start + length] = np.frombuffer(view, np.uint8)
    return header.getvalue(), tuple(places), flat


def unpack(packed: Packed, known: Sequence[np.ndarray] = (), *, apart: bool = False) -> Any:
    """The message. Its arrays are read-only, and views of the flat one unless they are to be had `apart`: one that is kept keeps all of it."""
    header, places, flat = packed
    flat = flat.view()
    flat.flags.writeable = False
    views = [flat[start : start + length] for start, length in places]
    return _Unpickler(header, [_copied(view) for view in views] if apart else views, known).load()


def _copied(view: np.ndarray) -> np.ndarray:
    copy = view.copy()
    copy.flags.writeable = False
    return copy


def repeated(trees: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    """The arrays that more than one of the trees holds: worth sending once for all."""
    seen: dict[int, list[Any]] = {}
    for tree in trees:
        for array in tree.values():
            seen.setdefault(id(array), [array, 0])[1] += 1
    return [array for array, count in seen.values() if count > 1]
