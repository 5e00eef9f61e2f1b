"""cmr-fed-v1: the file, its hash, and its rule carried out a second time by hand."""

import hashlib
import json
from types import SimpleNamespace

import pytest

from raylora.core.errors import InputError
from raylora.data import partition, protocol
from raylora.data.groups import DISEASED, NORMAL


def row(id, dataset="acdc", group="NOR", vendor="Siemens", labelled=True):
    return SimpleNamespace(id=id, dataset=dataset, group=group, vendor=vendor, centre="", split="training", labelled=labelled)


def test_the_hash_is_over_everything_and_changes_with_anything():
    found = protocol.load()
    assert found.sha256 == "94bf0d14864b80ff69e795c4ed5cfe90fcb0298151be07c349c0033ea191aef7"
    assert found.stamp == f"cmr-fed-v1 (sha256 {found.sha256[:16]})"
    changed = json.loads(json.dumps(found.rules))
    changed["scoring"][0] += " "
    assert protocol.Protocol(changed).sha256 != found.sha256


def test_the_file_says_what_the_code_does():
    rules = protocol.load().rules
    classes = rules["cases"]["disease_classes"]
    assert {name: sorted(groups) for name, groups in DISEASED.items()} == {name: value["diseased"] for name, value in classes.items()}
    assert all(value["normal"] == [NORMAL] for value in classes.values())
    assert tuple(rules["split"]["fractions"]) == partition.PARTS
    assert rules["clients"]["by"] in partition.RULES


def test_the_split_by_hand():
    """Two strata of five and seven, dealt as the file's sentences say."""
    rows = [row(f"patient{n:03d}", group="DCM") for n in range(5)] + [row(f"patient{n:03d}") for n in range(5, 12)]
    rows += [row("002", "mnms2", "NOR", "GE"), row("003", "mnms2", "NOR", ""), row("A0S9V9", "mnms", "NOR", "GE", labelled=False)]
    splits, left_out = protocol.load().divide(rows, "segmentation")
    assert left_out == {"003": "no vendor is known", "A0S9V9": "unlabelled: for masked auto-encoding only"}

    def ordered(numbers):
        return sorted((f"patient{n:03d}" for n in numbers), key=lambda id: hashlib.sha256(f"cmr-fed-v1/{id}".encode()).hexdigest())

    dcm, nor = ordered(range(5)), ordered(range(5, 12))
    # DCM, five: exact 3, 0.5, 0.5, 1: one left over, a tie, to validation.
    # NOR, seven: exact 4.2, 0.7, 0.7, 1.4: floors 4, 0, 0, 1, two left over; behind are train 0.2, validation 0.2, rating 1.2, test 0.4:
    # to rating and test.
    assert splits["Siemens"].train == tuple(sorted(dcm[:3] + nor[:4]))
    assert splits["Siemens"].validation == (dcm[3],)
    assert splits["Siemens"].rating == (nor[4],)
    assert splits["Siemens"].test == tuple(sorted([dcm[4], *nor[5:]]))
    assert splits["GE"].train == ("002",)


def test_what_the_protocol_does_not_know():
    found = protocol.load()
    assert (found.primary("segmentation"), found.primary("disease")) == ("dice", "balanced_accuracy")
    with pytest.raises(InputError, match="expected a task of segmentation, disease, found 'landmarks'"):
        found.divide([row("a")], "landmarks")
    with pytest.raises(InputError, match="expected studies of acdc, mnms, mnms2, found ukbb"):
        found.divide([row("a", dataset="ukbb")], "disease")
    with pytest.raises(InputError, match="protocol: expected one of cmr-fed-v1, found 'v2'"):
        protocol.load("v2")
