"""Studies that are sent to a machine without them arrive as they were, and only those that were asked for."""

import numpy as np
import pytest

from raylora.core.errors import InputError
from raylora.data import travel
from raylora.data.manifest import read_manifest
from raylora.data.shards import PreparedSet


def parcel_of(prepared_folder, count):
    ids = PreparedSet.open(prepared_folder).ids[:count]
    return ids, travel.pack(prepared_folder, [*ids, "of another set"], lambda data: data)


def test_what_arrives_is_what_was_sent(prepared_folder, tmp_path):
    ids, parcel = parcel_of(prepared_folder, 3)
    folder = travel.unpack(parcel, tmp_path, lambda data: data)
    sent, arrived = PreparedSet.open(prepared_folder), PreparedSet.open(folder)
    assert arrived.ids == ids
    for i in ids:
        assert arrived.study(i).geometry == sent.study(i).geometry
        for name, frame in arrived.study(i).frames.items():
            np.testing.assert_array_equal(frame.image, sent.study(i).frames[name].image)


def test_what_is_there_is_not_fetched_again(prepared_folder, tmp_path):
    _, parcel = parcel_of(prepared_folder, 2)
    folder = travel.unpack(parcel, tmp_path, lambda data: data)
    first = next(iter(parcel.shards))
    (folder / "studies" / f"{first}.arrow").write_bytes(b"torn")
    fetched = []
    assert travel.unpack(parcel, tmp_path, lambda data: fetched.append(1) or data) == folder
    assert len(fetched) == 1
    assert PreparedSet.open(folder).study(first).id == first


def test_another_file_is_refused(prepared_folder, tmp_path):
    _, parcel = parcel_of(prepared_folder, 1)
    with pytest.raises(InputError, match="not the prepared study"):
        travel.unpack(parcel, tmp_path, lambda data: data + b"x")


def test_a_machine_has_the_data_only_if_they_are_the_same(prepared_folder, tmp_path):
    sha256 = read_manifest(prepared_folder).data_sha256
    here = travel.here(prepared_folder, sha256)
    assert here is not None and here.ids == PreparedSet.open(prepared_folder).ids
    assert travel.here(prepared_folder, "0" * 64) is None
    assert travel.here(tmp_path, sha256) is None
