"""Every random generator comes from here. There is no global seed."""

import hashlib

import numpy as np


def seed_of(root_seed: int, purpose: str, round: int = 0, client: str = "") -> int:
    """A 64-bit seed that depends on all four arguments and on nothing else (SHA-256, so neighbouring seeds share nothing)."""
    key = f"{root_seed}\x1f{purpose}\x1f{round}\x1f{client}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "little")


def generator(root_seed: int, purpose: str, round: int = 0, client: str = "") -> np.random.Generator:
    """The generator of (root seed, purpose, round, client)."""
    return np.random.Generator(np.random.PCG64(seed_of(root_seed, purpose, round, client)))
