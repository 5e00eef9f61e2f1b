"""`python tests/ask.py SOCKET run CONFIG ...`: a `raylora` command as a fork of the `tests/serve.py SOCKET` that has loaded torch already."""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    request = json.dumps({"arguments": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
    connection.sendall(request)
    answer = connection.recv(1)
sys.exit(answer[0] if answer else "the command was lost")
