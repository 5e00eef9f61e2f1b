"""In the place of an agent of a Ray of our own: `python -I -S stand_in.py AGENT.py --session-dir=... --node-id=... [OPTIONS]`.

A raylet does not start without its agents, waits until each has written its ports, and ends when one of them ends. They serve a dashboard
(metrics, logs, jobs) and make runtime environments; where there is neither, this says that nobody listens (port -1, as Ray's own agent says it
in an installation without a dashboard) and ends with its raylet. It needs no more than Python itself.
"""

import os
import sys
import time

PORTS = {
    "dashboard/agent.py": ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port"),
    "runtime_env/agent/main.py": ("runtime_env_agent_port",),
}
LOOK_S = 0.5  # between looks at whether the raylet is still there


def main() -> None:
    parent = os.getppid()
    agent, *options = sys.argv[1:]
    given = dict(word[2:].split("=", 1) for word in options if "=" in word)
    for name in next(names for end, names in PORTS.items() if agent.endswith(end)):
        path = f"{given['session-dir']}/{name}_{given['node-id']}"
        with open(path + ".new", "w") as file:
            file.write("-1")
        os.replace(path + ".new", path)
    while os.getppid() == parent:
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main()
