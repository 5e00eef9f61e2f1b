"""`python tests/serve.py SOCKET`: runs the commands that tests/ask.py sends, each in a fork of this process, until somebody ends it.

Worker processes of these commands import this module anew: nothing but Python's own is imported before `main`.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable


def main() -> None:
    """Load once what commands load."""
    from here import without_ray

    import raylora.report.compare  # noqa: F401
    from raylora import cli

    without_ray(setattr)
    serve(sys.argv[1], cli.main)


def serve(path: str, command: Callable[[list[str]], None]) -> None:
    """Answer whoever asks, all at once."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            with connection:
                if os.fork() == 0:
                    listening.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    answer(connection, command)


def answer(connection: socket.socket, command: Callable[[list[str]], None]) -> None:
    """One command, with the streams, the folder and the environment of whoever asked; its exit code is the answer."""
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    request = json.loads(connection.makefile("rb").read(int.from_bytes(size, "big")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ |= request["environment"]
    sys.path += [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    code = 1
    try:
        command(request["arguments"])
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([code]))
        os._exit(code)


if __name__ == "__main__":
    main()
