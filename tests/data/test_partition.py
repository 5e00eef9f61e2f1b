"""Every patient in exactly one client and one part, whatever the data look like; and the refusals."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylora.core.errors import InputError
from raylora.data import partition
from raylora.data.groups import disease_label, without_counterpart
from raylora.data.partition import PARTS, assign_clients, check_clients, eligible, set_apart, split_client, split_official

GROUPS = {"acdc": ("NOR", "DCM", "RV"), "mnms": ("NOR", "ARV", "HHD", ""), "mnms2": ("NOR", "RV")}


def row(id, dataset="acdc", group="NOR", vendor="Siemens", centre="acdc-1", split="training", labelled=True):
    return SimpleNamespace(id=id, dataset=dataset, group=group, vendor=vendor, centre=centre, split=split, labelled=labelled)


@st.composite
def cohorts(draw, most=60):
    count = draw(st.integers(4, most))
    rows = []
    for number in range(count):
        dataset = draw(st.sampled_from(sorted(GROUPS)))
        vendor = draw(st.sampled_from(("Siemens", "GE", "")))
        split = draw(st.sampled_from(("training", "validation", "testing")))
        rows.append(row(f"p{number}", dataset, draw(st.sampled_from(GROUPS[dataset])), vendor, f"{dataset}-1", split))
    pairs = [(f"p{i}", f"p{i + 1}") for i in draw(st.sets(st.integers(0, count - 2), max_size=min(3, count - 2)))]
    return rows, pairs  # two patients at least


SETTINGS = settings(max_examples=30, deadline=None)


@SETTINGS
@given(cohorts(), st.sampled_from(("vendor", "centre", "pathology", "iid", "dirichlet")), st.integers(0, 99), st.randoms())
def test_every_case_is_in_exactly_one_client(cohort, by, seed, shuffler):
    rows, pairs = cohort
    found = assign_clients(rows, by=by, count=2, alpha=0.7, seed=seed, pairs=pairs, minimum=0)
    placed = [id for ids in found.clients.values() for id in ids] + list(found.left_out)
    assert sorted(placed) == sorted(r.id for r in rows)
    client = {id: name for name, ids in found.clients.items() for id in ids}
    assert all(client.get(a) == client.get(b) for a, b in pairs)
    shuffler.shuffle(rows)
    assert assign_clients(rows, by=by, count=2, alpha=0.7, seed=seed, pairs=pairs, minimum=0) == found


@SETTINGS
@given(cohorts(), st.integers(0, 99), st.sampled_from(((0.6, 0.1, 0.1, 0.2), (0.5, 0, 0, 0.5), (7, 1, 1, 3))), st.randoms())
def test_parts_are_disjoint_exhaustive_stratified_and_keep_pairs_together(cohort, seed, fractions, shuffler):
    rows, pairs = cohort
    split = split_client(rows, seed, fractions, pairs)
    part = {id: name for name in PARTS for id in getattr(split, name)}
    assert sorted(id for name in PARTS for id in getattr(split, name)) == sorted(r.id for r in rows)
    assert all(part[a] == part[b] for a, b in pairs)
    alone = split_client(rows, seed, fractions)  # without pairs strata are counted in rows
    part = {id: name for name in PARTS for id in getattr(alone, name)}
    for stratum, size in Counter((r.dataset, r.group) for r in rows).items():
        for name, share in zip(PARTS, fractions, strict=True):
            here = sum(part[r.id] == name for r in rows if (r.dataset, r.group) == stratum)
            assert abs(here - size * share / sum(fractions)) < 1
    shuffler.shuffle(rows)
    assert split_client(rows, seed, fractions, pairs) == split


@SETTINGS
@given(cohorts(), st.integers(0, 99))
def test_the_official_split_is_kept(cohort, seed):
    rows, pairs = cohort
    split = split_official(rows, seed, pairs=pairs)
    part = {id: name for name in PARTS for id in getattr(split, name)}
    assert sorted([*part, *split.left_out]) == sorted(r.id for r in rows)
    allowed = {"training": {"train", "validation", "rating"}, "validation": {"validation", "rating"}, "testing": {"test"}}
    assert all(part[r.id] in allowed[r.split] for r in rows if r.id in part)
    in_test = [(part.get(a) == "test", part.get(b) == "test") for a, b in pairs if a in part and b in part]
    assert all(a == b for a, b in in_test)


def test_the_official_validation_set_spares_the_training_set():
    rows = [row(f"t{i}") for i in range(20)] + [row(f"v{i}", split="validation") for i in range(4)] + [row("x", split="testing")]
    split = split_official(rows, 0)
    assert (len(split.train), len(split.validation), len(split.rating), split.test) == (20, 2, 2, ("x",))
    split = split_official(rows[:20] + rows[-1:], 0, (0.6, 0.2, 0.2, 0.5))
    assert (len(split.train), len(split.validation), len(split.rating), split.test) == (12, 4, 4, ("x",))


def test_split_seed_changes_the_split_and_more_patients_do_not_move_the_others():
    rows = [row(f"p{i}") for i in range(100)]
    first, other = split_client(rows, 0), split_client(rows, 1)
    assert [len(getattr(first, name)) for name in PARTS] == [60, 10, 10, 20]
    assert first.test != other.test
    more = split_client([*rows, *(row(f"q{i}") for i in range(5))], 0)
    assert len(set(first.test) & set(more.test)) >= 15


def test_overall_shares_hold_even_if_every_stratum_is_small():
    rows = [row(f"p{i}", group=f"g{i // 2}") for i in range(100)]
    split = split_client(rows, 0)
    assert [len(getattr(split, name)) for name in PARTS] == pytest.approx([60, 10, 10, 20], abs=2)


def test_dirichlet_shares_follow_alpha():
    rows = [row(f"p{i}", group=("NOR", "DCM")[i % 2]) for i in range(400)]

    def skew(alpha):
        clients = assign_clients(rows, by="dirichlet", count=4, alpha=alpha, seed=3).clients
        normal = [sum(int(id[1:]) % 2 == 0 for id in ids) / len(ids) for ids in clients.values()]
        return max(normal) - min(normal)

    assert skew(1000.0) < 0.1 < 0.5 < skew(0.2)
    sizes = [len(ids) for ids in assign_clients(rows, by="dirichlet", count=4, alpha=0.05, seed=1, minimum=5).clients.values()]
    assert min(sizes) >= 5 and sum(sizes) == 400


def test_iid_clients_differ_by_one_patient_and_are_stratified():
    rows = [row(f"p{i}", group=("NOR", "DCM", "RV")[i % 3]) for i in range(31)]
    clients = assign_clients(rows, by="iid", count=3).clients
    assert sorted(clients) == ["client-1", "client-2", "client-3"]
    assert sorted(len(ids) for ids in clients.values()) == [10, 10, 11]
    for ids in clients.values():
        assert all(3 <= n <= 4 for n in Counter(int(id[1:]) % 3 for id in ids).values())


def test_clients_by_pathology_meet_only_where_groups_have_counterparts():
    rows = [row("a", "acdc", "RV"), row("b", "mnms", "ARV"), row("c", "mnms2", "RV"), row("d", "mnms", "Other/2")]
    assert assign_clients(rows, by="pathology").clients == {"ARV": ("a", "b"), "mnms-Other-2": ("d",), "mnms2-RV": ("c",)}
    assert assign_clients(rows[:1], by="pathology").clients == {"RV": ("a",)}  # one data set: its own word
    assert without_counterpart({("acdc", "RV"), ("mnms2", "RV")}) == ["mnms2: group 'RV' has no counterpart in the other data sets"]
    assert without_counterpart({("mnms2", "RV")}) == []


def test_held_out_clients_never_train_and_unknowns_are_said():
    rows = [row("a"), row("b", vendor="GE"), row("c", vendor="")]
    found = assign_clients(rows, by="vendor", held_out=["GE"])
    assert (found.clients, found.held_out, found.left_out) == ({"Siemens": ("a",)}, {"GE": ("b",)}, {"c": "no vendor is known"})
    with pytest.raises(InputError, match=r"held_out: no client 'Canon', expected some of GE, Siemens"):
        assign_clients(rows, by="vendor", held_out=["Canon"])


def test_data_sets_that_never_train_are_clients_by_vendor_without_patients_known_from_elsewhere():
    rows = [row("a"), row("b", "mnms", vendor="GE"), row("c", "mnms", vendor=""), row("d", "mnms", vendor="GE"), row("e", "mnms2")]
    kept, clients, left_out = set_apart(rows, ["mnms"], [("a", "d"), ("a", "e")])
    assert [r.id for r in kept] == ["a", "e"] and clients == {"mnms-GE": ("b",), "mnms-unknown": ("c",)}
    assert left_out == {"d": "unseen by its data set, but a duplicate of a study that may train"}
    assert set_apart(rows, []) == (rows, {}, {})
    with pytest.raises(InputError, match=r"clients.unseen: no studies of mnms2, expected some of acdc, mnms"):
        set_apart(rows[:2], ["mnms2"])
    with pytest.raises(InputError, match=r"clients.unseen: mnms are all data sets"):
        set_apart(rows[1:2], ["mnms"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "phase"}, "clients.by: expected one of vendor"),
        ({"by": "centre"}, "clients.by: centre: none of 3 studies has a client: no centre is known"),
        ({"by": "iid"}, r"clients.count: expected 1 to 3 \(patients\) .* found None"),
        ({"by": "iid", "count": 4}, "found 4"),
        ({"by": "dirichlet", "count": 3, "alpha": 0.01, "minimum": 2}, "clients.alpha: with 0.01, 3 clients and 3 patients"),
    ],
)
def test_impossible_divisions_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        assign_clients([row("a", centre=""), row("b", centre=""), row("c", centre="")], **options)
    with pytest.raises(InputError, match="clients.by: dirichlet: none of 1 studies has a client: no group is known"):
        assign_clients([row("a", group="")], by="dirichlet", count=1)


def test_eligible_cases():
    rows = [row("a"), row("b", labelled=False), row("c", "mnms", "AHS"), row("d", group="")]
    assert [r.id for r in eligible(rows, "segmentation")[0]] == ["a", "c", "d"]
    kept, left_out = eligible(rows, "disease")
    assert [r.id for r in kept] == ["a"] and sorted(left_out) == ["b", "c", "d"]
    assert "masked auto-encoding" in left_out["b"]


def test_disease_labels():
    cases = (("acdc", "NOR"), ("acdc", "RV"), ("mnms2", "RV"), ("mnms", "RV"), ("mnms", ""))
    assert [disease_label(*case) for case in cases] == [0, 1, 1, None, None]


def test_clients_without_cases_or_with_one_class_are_refused_by_name():
    split = partition.Split(train=("a", "b"), validation=(), rating=(), test=("c",))
    check_clients({"GE": split}, {"a": 0, "b": 1})
    with pytest.raises(InputError, match="client GE: no rating cases"):
        check_clients({"GE": split}, needs=("train", "rating"))
    with pytest.raises(InputError, match="client GE: expected training cases of both classes, all 2 are of class 1"):
        check_clients({"GE": split}, {"a": 1, "b": 1})
    with pytest.raises(
        InputError, match=r"client Canon: no test cases \(it has train 1, validation 0, rating 0, test 0; see data.fractions\)"
    ):
        check_clients({"Canon": split_client([row("a")], 0)})


def test_sizes_follow_their_dirichlet():
    """A share of Dir(a, ..., a) over K clients has the variance (1/K)(1 - 1/K) / (K a + 1); all patients stay, groups stay mixed."""
    rows = [row(f"p{k}", group=("NOR", "DCM")[k % 2]) for k in range(200)]
    count, alpha, draws = 4, 3.0, 300
    shares = []
    for seed in range(draws):
        found = assign_clients(rows, by="iid", count=count, sizes=alpha, seed=seed, minimum=0).clients
        shares += [len(found.get(f"client-{k + 1}", ())) / 200 for k in range(count)]
        for ids in found.values():
            normal = sum(int(id[1:]) % 2 == 0 for id in ids)
            assert abs(normal - len(ids) / 2) <= 4
    expected = (1 / count) * (1 - 1 / count) / (count * alpha + 1)
    assert sum((s - 1 / count) ** 2 for s in shares) / len(shares) == pytest.approx(expected, rel=0.2)
    equal = assign_clients(rows, by="iid", count=count, seed=0)
    assert {len(ids) for ids in equal.clients.values()} == {50}


def test_sizes_that_leave_a_client_too_small_are_refused():
    rows = [row(f"p{k}") for k in range(10)]
    with pytest.raises(InputError, match=r"clients.sizes: with 0.001, 5 clients and 10 patients some client has fewer than 2"):
        assign_clients(rows, by="iid", count=5, sizes=0.001)
