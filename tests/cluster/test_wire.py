"""Messages as one flat array: what is packed is unpacked, once, read-only."""

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from raylora.cluster.wire import ALIGNMENT, pack, repeated, unpack
from raylora.core.types import Broadcast, ClientUpdate, Task

TREES = st.dictionaries(
    st.text(max_size=5),
    npst.arrays(st.sampled_from([np.float32, np.float64, np.uint8, np.int64]), npst.array_shapes(min_dims=0, max_dims=3, min_side=0)),
    max_size=4,
)


def alike(one, other) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and one[n].shape == other[n].shape and one[n].tobytes() == other[n].tobytes() for n in one
    )


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(TREES, TREES)
def test_a_message_arrives_as_it_was_sent(first, second):
    found = unpack(pickle.loads(pickle.dumps(pack([first, {"inside": second}, "words", 1.5]))))
    assert alike(found[0], first) and alike(found[1]["inside"], second) and found[2:] == ["words", 1.5]
    for array in (*found[0].values(), *found[1]["inside"].values()):
        if array.ndim and array.size:
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0


def test_all_numbers_are_in_one_array_and_the_header_is_small():
    tree = {f"blocks.{i}.lora_A": np.random.default_rng(i).random((4, 500), np.float32) for i in range(50)}
    update = ClientUpdate(client_id="a", num_examples=3, adapter=tree)
    header, places, flat = pack([update, update])
    assert len(places) == 50 and flat.nbytes == 50 * -(-8000 // ALIGNMENT) * ALIGNMENT, "an array that occurs twice is there once"
    assert len(header) < 10_000 and all(start % ALIGNMENT == 0 for start, _ in places)
    one, other = unpack((header, places, flat))
    assert alike(one.adapter, tree) and one.client_id == "a" and one is other
    assert np.shares_memory(one.adapter["blocks.7.lora_A"], flat), "nothing is copied"


def test_what_the_other_side_knows_is_not_sent():
    common = {"w": np.arange(5.0), "v": np.ones(3)}
    mine = np.zeros(4)
    broadcasts = [Broadcast(adapter={**common, "mine": mine + k}, task=Task(round=0)) for k in range(2)]
    known = repeated([broadcast.adapter for broadcast in broadcasts])
    assert {id(array) for array in known} == {id(array) for array in common.values()}
    packed = pack(broadcasts[1], known)
    assert len(packed[1]) == 1
    theirs = unpack(pack(known))
    found = unpack(packed, theirs)
    assert alike(found.adapter, broadcasts[1].adapter) and found.adapter["w"] is theirs[0] and found.task == Task(round=0)


def test_what_is_not_contiguous_arrives_too():
    array = np.arange(24.0).reshape(4, 6)
    found = unpack(pack({"cut": array[:, ::2], "turned": array.T, "none": np.zeros((0, 3))}))
    assert alike(found, {"cut": array[:, ::2], "turned": array.T, "none": np.zeros((0, 3))})


def test_arrays_that_are_kept_do_not_keep_the_answer_that_they_came_in():
    packed = pack({"w": np.arange(5.0)})
    kept = unpack(packed, apart=True)["w"]
    assert np.array_equal(kept, np.arange(5.0)) and not kept.flags.writeable and not np.shares_memory(kept, packed[2])
