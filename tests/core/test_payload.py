"""Bytes by hand: 4 an element, 8 a number."""

import numpy as np

from raylora.core.payload import bytes_of
from raylora.core.types import Broadcast, ClientUpdate, Task


def test_broadcast() -> None:
    message = Broadcast(
        adapter={"q.lora_A": np.zeros((2, 5)), "head": np.zeros(3)},
        base_delta={"q.lora_A": np.zeros((4, 5)), "q.lora_B": np.zeros((6, 4))},
        extra={"c": {"head": np.zeros(3)}},
        task=Task(round=7, uploads=("*",), scores=("received",)),
    )
    assert bytes_of(message) == 4 * (10 + 3 + 20 + 24 + 3)


def test_client_update() -> None:
    message = ClientUpdate(
        client_id="a long name that is not counted",
        num_examples=12,
        adapter={"q.lora_A": np.zeros((2, 5))},
        metrics={"score_received": 0.5, "score_trained": 0.6},
        extra={"delta_c": {"q.lora_A": np.zeros((2, 5))}},
    )
    assert bytes_of(message) == 4 * 20 + 8 * 3


def test_compressed_update() -> None:
    tree = {"w": np.zeros(10)}
    message = ClientUpdate(client_id="a", num_examples=1, adapter=tree, extra={"delta_c": tree}, adapter_bytes=17)
    assert bytes_of(message) == 17 + 40 + 8
