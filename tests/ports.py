"""TCP ports of 127.0.0.1 for servers that take them seconds later."""

import contextlib
import secrets
import socket

FIRST, COUNT = 20_000, 12_000  # below those that the kernel gives to whoever asks for any, above those of Ray's workers


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens at."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            one = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                one.bind(("127.0.0.1", FIRST + secrets.randbelow(COUNT)))
                found.append(one.getsockname()[1])
    return found
