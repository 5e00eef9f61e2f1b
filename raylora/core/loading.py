"""Large libraries, loaded faster."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """While this is open nobody looks for garbage: what an import makes stays, and looking through it over and over is a fifth of the time
    that torch takes to load."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
