"""A synthetic patient: the same for ever, with the volumes it claims, in a body that looks like its scanner."""

from dataclasses import asdict

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, label

from raylora.core.errors import InputError
from raylora.data.phantom import assign, study
from raylora.data.phantom_anatomy import Chambers, beat, epicardium_mm, lv_ml, myo_ml, rv_ml
from raylora.data.phantom_patient import GROUPS, meets_definition, patient
from raylora.data.phantom_scanner import CENTRES, LOOKS, REFERENCE, VENDORS, look


@pytest.fixture(scope="module")
def studies():
    cases = [("Siemens", "NOR"), ("Philips", "HCM"), ("GE", "MINF"), ("Canon", "DCM"), ("Philips", "RV")]
    return [study(11, n, vendor=v, group=g) for n, (v, g) in enumerate(cases)]


def test_a_study_follows_from_seed_and_number(studies):
    again = study(11, 3, vendor="Canon", group="DCM")
    np.testing.assert_array_equal(again.images["ES"], studies[3].images["ES"])
    np.testing.assert_array_equal(again.affine, studies[3].affine)
    other = study(12, 3, vendor="Canon", group="DCM")
    assert other.images["ES"].shape != again.images["ES"].shape or (other.images["ES"] != again.images["ES"]).any()


def test_labelled_voxels_have_the_stated_volumes(studies):
    for made in studies:
        voxel_ml = np.prod(made.spacing_mm) / 1000
        counted = {f: {n: (made.labels[f] == k).sum() * voxel_ml for n, k in (("RV", 1), ("MYO", 2), ("LV", 3))} for f in ("ED", "ES")}
        for frame in ("ED", "ES"):
            for name, stated in made.volumes_ml[frame].items():
                assert counted[frame][name] == pytest.approx(stated, rel=0.03, abs=1), (made.group, frame, name)
        assert 100 * (1 - counted["ES"]["LV"] / counted["ED"]["LV"]) == pytest.approx(made.patient.lv_ef_percent, abs=2)
        assert 100 * (1 - counted["ES"]["RV"] / counted["ED"]["RV"]) == pytest.approx(made.patient.rv_ef_percent, abs=2)


def test_cavity_lies_in_a_closed_ring_of_wall(studies):
    for made in studies:
        for frame in ("ED", "ES"):
            lab = made.labels[frame]
            slices = [k for k in range(lab.shape[2]) if (lab[:, :, k] == 3).sum() > 30]
            for k in slices:
                cavity = lab[:, :, k] == 3
                rim = binary_dilation(cavity, np.ones((3, 3))) & ~cavity
                assert set(np.unique(lab[:, :, k][rim])) == {2}, (made.group, frame, k)
                assert label(cavity)[1] == 1


@pytest.mark.slow
def test_centre_crop_without_labels_holds_the_heart():
    for number in range(0, 24, 4):
        made = study(0, number)
        where = np.argwhere(made.labels["ED"] > 0)
        centre_mm = (np.array(made.labels["ED"].shape[:2]) - 1) / 2 * made.spacing_mm[0]
        assert np.abs(where[:, :2] * made.spacing_mm[0] - centre_mm).max() < 96


def test_blood_is_bright_and_lungs_are_dark(studies):
    for made in studies:
        image, lab = made.images["ED"].astype(float), made.labels["ED"]
        blood, wall = np.median(image[lab == 3]), np.median(image[lab == 2])
        assert wall < 0.85 * blood
        assert np.percentile(image, 5) < 0.35 * blood


def test_affine_is_oblique_and_agrees_with_the_spacing(studies):
    handedness = set()
    for made in studies:
        axes = made.affine[:3, :3]
        np.testing.assert_allclose(np.linalg.norm(axes, axis=0), made.spacing_mm, rtol=1e-6)
        gram = axes.T @ axes
        np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-9)
        assert (np.abs(axes[:, 2]) > 0.2 * made.spacing_mm[2]).sum() >= 2
        handedness.add(np.sign(np.linalg.det(axes)))
    assert handedness == {-1.0, 1.0}


@pytest.mark.slow
def test_array_orientation_leaves_the_world_alone():
    """The apex lies to the left, in front of and below the base, however the array is stored."""
    for vendor in VENDORS:
        made = study(5, 2, vendor=vendor)
        sizes = [(made.labels["ED"][:, :, k] > 0).sum() for k in range(made.labels["ED"].shape[2])]
        labelled = np.flatnonzero(sizes)
        apex, base = sorted((labelled[0], labelled[-1]), key=lambda k: sizes[k])
        points = [made.affine @ [*np.argwhere(made.labels["ED"][:, :, k] > 0).mean(0), k, 1] for k in (apex, base)]
        left, front, down = (points[0] - points[1])[:3] * (-1, 1, -1)
        assert left > 0 and front > 0 and down > 0, vendor


def test_an_akinetic_segment_neither_moves_nor_thickens():
    person = patient(2, 4, "MINF")
    slices_mm = np.arange(-5, 120, 9.0)
    diastole, systole = beat(person, slices_mm, 9.0, np.random.default_rng(0))
    w = np.float64(0.45 * diastole.length_mm)

    def motion_mm(angle: float) -> float:
        outer = [float(epicardium_mm(h, np.float64(angle), w * h.length_mm / diastole.length_mm)) for h in (diastole, systole)]
        return outer[0] - outer[1]

    assert abs(motion_mm(person.infarct_angle)) < 1.5
    assert diastole.radius_mm - systole.radius_mm > 3


def test_the_wall_keeps_its_volume_roughly(studies):
    for made in studies:
        assert made.volumes_ml["ES"]["MYO"] == pytest.approx(made.volumes_ml["ED"]["MYO"], rel=0.25), made.group


def test_volumes_of_an_ellipsoid():
    """Without ripple the measured cavity is the truncated ellipsoid's closed form, and depth 0 means no right ventricle."""
    heart = Chambers(
        radius_mm=25.0,
        length_mm=90.0,
        wall_mm=10.0,
        bulge_mm=0.0,
        thinning=0.0,
        septal=0.0,
        infarct_angle=0.0,
        rv_depth_mm=0.0,
        ripple=np.zeros((3, 4)),
    )
    slices_mm = np.arange(0.05, 90, 0.1)
    e = 0.74
    expected_ml = np.pi * 25**2 * 90 * (1 - ((1 - e) ** 3 + e**3) / (3 * e**2)) / 1000
    assert lv_ml(heart, slices_mm, 0.1) == pytest.approx(expected_ml, rel=1e-3)
    assert myo_ml(heart, slices_mm, 0.1) > 0
    assert rv_ml(heart, slices_mm, 0.1) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("group", GROUPS)
def test_most_hearts_meet_their_groups_definition_and_some_are_mild(group):
    share = np.mean([meets_definition(patient(0, n, group)) for n in range(300)])
    assert 0.7 < share < 1.0, share


def test_size_and_ejection_fraction_tell_most_disease_and_not_all_hearts():
    right = {True: [], False: []}
    for n in range(600):
        group = assign(0, n)[2]
        p = patient(0, n, group)
        lv, rv = p.lvedv_ml / p.bsa_m2, p.rvedv_ml / p.bsa_m2
        called = p.lv_ef_percent < 50 or lv > 105 or p.wall_mm > 13 or rv > 108 or p.rv_ef_percent < 44
        right[group != "NOR"].append(called == (group != "NOR"))
    for diseased, correct in right.items():
        assert np.mean(correct) > 0.85, diseased
    assert np.mean(right[True] + right[False]) < 0.995


def test_severity_moves_disease_and_leaves_normal_hearts():
    assert patient(0, 7, "NOR", 1.5) == patient(0, 7, "NOR")
    mild, severe = patient(0, 7, "DCM", 0.5), patient(0, 7, "DCM", 1.5)
    assert severe.lvedv_ml > mild.lvedv_ml and severe.lv_ef_percent < mild.lv_ef_percent and severe.height_cm == mild.height_cm


def test_every_vendor_has_its_share_and_both_classes():
    for seed in range(5):
        given = [assign(seed, n) for n in range(100)]
        counts = {v: [g for vendor, _, g in given if vendor == v] for v in VENDORS}
        assert 44 <= len(counts["Philips"]) <= 52
        for vendor, groups in counts.items():
            assert len(groups) >= 10
            assert 0.2 < np.mean([g == "NOR" for g in groups]) < 0.7, (seed, vendor)
        assert {c for _, c, _ in given} == set(CENTRES)


def test_shift_is_a_dial_from_one_look_to_the_vendors_own():
    for centre, (vendor, _, _) in CENTRES.items():
        assert look(vendor, centre, 0.0) == REFERENCE
    assert asdict(look("GE", "4", 1.0)) == pytest.approx(asdict(LOOKS["GE"]))
    steps = [look("Canon", "5", s).myocardium for s in (0, 0.5, 1.0, 1.2)]
    assert steps == sorted(steps) and steps[-1] > steps[-2]


@pytest.mark.parametrize("shift", [3.0, 4.0])
def test_however_strong_the_shift_a_heart_is_not_cut_off_at_the_end_of_int16(shift):
    for vendor in ("Canon", "GE"):
        found = study(7, 3, vendor=vendor, group="NOR", shift=shift)
        heart = found.images["ED"][found.labels["ED"] > 0]
        assert (heart == 32767).mean() < 0.1, (vendor, (heart == 32767).mean())


@pytest.mark.slow
def test_without_shift_the_person_alone_decides():
    a, b = (study(7, 1, vendor=v, group="NOR", shift=0.0) for v in ("Siemens", "Canon"))
    np.testing.assert_array_equal(a.images["ED"], b.images["ED"])
    np.testing.assert_array_equal(a.labels["ES"], b.labels["ES"])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"vendor": "Acme"}, "Acme"),
        ({"group": "XYZ"}, "XYZ"),
        ({"shift": -1.0}, "shift"),
        ({"shift": float("nan")}, "shift"),
        ({"number": -1}, "number"),
    ],
)
def test_refusals(wrong, message):
    with pytest.raises(InputError, match=message):
        study(**{"seed": 0, "number": 0, **wrong})
