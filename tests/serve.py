"""`python tests/serve.py SOCKET`: runs the commands and notebooks' kernels that tests/ask.py asks for, each in a fork of this process, until
somebody ends it.

Worker processes of these commands import this module anew: nothing but Python's own is imported before `main`.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable


def main() -> None:
    """Load once what commands and notebooks load."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # a kernel says so before anything loads matplotlib
    import IPython.core.pylabtools  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import mlflow  # noqa: F401
    import pandas  # noqa: F401
    from here import without_ray
    from ipykernel.kernelapp import launch_new_instance

    import raylora.report.compare  # noqa: F401
    from raylora import cli

    def command(arguments: list[str]) -> None:
        if arguments[0] == "kernel":
            os.environ.pop("JPY_PARENT_PID")  # a kernel ends with its parent, and that is this process
            launch_new_instance(arguments[1:])
        else:
            cli.main(arguments)

    without_ray(setattr)
    serve(sys.argv[1], command)


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
