"""A round without Ray: the client, the rounds, checkpoints, the in-process executor."""
