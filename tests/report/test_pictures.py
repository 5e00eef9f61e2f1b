import io
import json

import numpy as np
import pytest
from make_run import make_run
from PIL import Image

from raylora.core.errors import InputError
from raylora.report.figures import LIGHT, png, shown_width
from raylora.report.overlays import overlay_pictures, read_overlays, slices_to_draw
from raylora.report.plots import run_pictures
from raylora.report.runs import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(make_run(tmp_path_factory.mktemp("pictures") / "run", strategy="rate_my_lora", pictures=True))


def _pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def test_a_run_has_its_four_pictures_with_words_and_data(run):
    pictures = {p.name: p for p in run_pictures(run)}
    assert list(pictures) == ["learning_curves", "weights", "cross_client", "bytes"]
    assert all(p.alt and p.data.rows for p in pictures.values())
    last = run.records("round")[-1]["weights"]
    assert f"canon {last['canon']:.3f}" in pictures["weights"].alt and pictures["weights"].title.startswith("Rating")
    assert pictures["bytes"].data.rows[-1] == (5, 5 * 4 * 1_800_000, 5 * 4 * 3_600_000)
    assert "36 MB up and 72 MB down" in pictures["bytes"].alt
    assert pictures["cross_client"].data.rows[0][1:] == tuple(run.summary["cross_client"]["values"][0])


def test_pictures_are_on_white_paper_and_the_same_every_time(run):
    weights = next(p for p in run_pictures(run) if p.name == "weights")
    image = png(weights)
    assert _pixels(image)[0, 0].min() == 255
    assert png(weights) == image
    assert shown_width(image) == round(_pixels(image).shape[1] / 1.5)


def test_a_missing_cell_is_drawn_as_not_available(run):
    holes = json.loads(json.dumps(run.summary))
    holes["cross_client"]["values"][0][0] = None
    other = read_run(run.folder)
    object.__setattr__(other, "summary", holes)
    picture = next(p for p in run_pictures(other) if p.name == "cross_client")
    assert next(iter(picture.data.texts()))[1] == "n/a"
    assert not np.array_equal(_pixels(png(picture)), _pixels(png(run_pictures(run)[2])))


def test_many_clients_become_a_bundle_with_a_mean(run):
    many = read_run(run.folder)
    records = [{"kind": "client", "round": t, "client": f"c{i:02d}", "loss": i + t, "validation": {}} for t in range(2) for i in range(30)]
    object.__setattr__(many, "rounds", records)
    curves = run_pictures(many)[0]
    assert curves.name == "learning_curves" and curves.alt.endswith("Training loss in the last round: mean 15.500 over 30 clients.")
    assert _pixels(png(curves)).shape[0] > 100


def test_a_client_looks_the_same_in_both_panels(run):
    some = read_run(run.folder)
    scored = {"b": {"dice": 0.5}, "c": {"dice": 0.6}}  # a has no validation patients
    records = [{"kind": "client", "round": 0, "client": c, "loss": 1.0, "validation": scored.get(c, {})} for c in "abc"]
    object.__setattr__(some, "rounds", records)
    validation, loss = run_pictures(some)[0].draw(LIGHT).axes
    looks = [{line.get_label(): (line.get_color(), line.get_marker()) for line in panel.lines} for panel in (validation, loss)]
    assert looks[0].keys() == {"b", "c", "mean"} and looks[0].items() <= looks[1].items()


def test_and_in_every_picture_also_if_it_came_later(run):
    some = read_run(run.folder)
    first, *others = sorted(run.clients)
    records = [
        {"kind": "client", "round": t, "client": c, "loss": 1.0, "validation": {}} for t in (0, 1) for c in run.clients if t or c != first
    ]
    records += [{"kind": "round", "round": t, "weights": {c: 0.5 for c in run.clients if t or c != first}} for t in (0, 1)]
    object.__setattr__(some, "rounds", records)
    pictures = {p.name: p for p in run_pictures(some)}
    looks = [
        {line.get_label(): (line.get_color(), line.get_marker()) for line in pictures[name].draw(LIGHT).axes[0].lines}
        for name in ("learning_curves", "weights")
    ]
    assert looks[1].keys() == {first, *others} and looks[1].items() <= looks[0].items()


def test_last_values_of_different_rounds_are_called_so(run):
    some = read_run(run.folder)
    records = [
        {"kind": "client", "round": t, "client": c, "loss": float(t), "validation": {}} for t in (0, 1) for c in "ab" if c == "a" or not t
    ]
    object.__setattr__(some, "rounds", records)
    assert run_pictures(some)[0].alt.endswith("Training loss in each client's last round: a 1.000, b 0.000.")


def test_a_matrix_of_many_clients_stays_a_picture(run):
    many = read_run(run.folder)
    clients = [f"c{i:02d}" for i in range(30)]
    block = {"metric": "dice", "rows": ["frozen", *clients], "columns": clients, "values": [[0.5] * 30] * 31}
    object.__setattr__(many, "summary", {**run.summary, "cross_client": block})
    matrix = next(p for p in run_pictures(many) if p.name == "cross_client")
    height, width, _ = _pixels(png(matrix)).shape
    assert width < 1200 and height < 1200
    assert len(matrix.data.rows) == 31


def test_a_run_without_records_has_no_curves(run):
    empty = read_run(run.folder)
    object.__setattr__(empty, "rounds", [])
    assert [p.name for p in run_pictures(empty)] == ["cross_client"]


def test_overlays_rank_patients_by_their_dice(run):
    (picture,) = overlay_pictures(run)
    assert picture.name == "overlays"
    assert [row[0] for row in picture.data.rows] == ["Best", "Median", "Worst"]
    assert {row[2] for row in picture.data.rows} == {"global"}
    dice = [row[3] for row in picture.data.rows]
    assert dice == sorted(dice, reverse=True)
    assert picture.data.rows[0][1] in picture.alt


@pytest.mark.slow
def test_overlays_show_colours_of_contours_on_dark_paper(run):
    (picture,) = overlay_pictures(run)
    pixels = _pixels(png(picture)).astype(int)
    assert pixels[0, 0].max() < 60
    images = pixels[: int(0.9 * len(pixels))].reshape(-1, 3)  # without the legend
    for colour in ((230, 159, 0), (61, 220, 151), (86, 180, 233), (255, 255, 255)):
        assert (np.abs(images - colour).max(1) < 40).sum() > 50


def test_slices_are_basal_mid_apical_whichever_way_the_stack_runs():
    label = np.zeros((8, 8, 12), np.uint8)
    for z, side in zip(range(1, 10), (7, 7, 6, 6, 5, 4, 3, 2, 1), strict=True):
        label[:side, :side, z] = 3
    assert slices_to_draw(label) == (2, 5, 8)
    assert slices_to_draw(label[:, :, ::-1]) == (9, 6, 3)
    assert slices_to_draw(np.zeros_like(label)) == (1, 6, 10)


def test_overlays_that_cannot_be_read_are_named(tmp_path):
    folder = make_run(tmp_path / "run", patients=1)
    assert read_overlays(read_run(folder)) == []
    (folder / "plots").mkdir()
    (folder / "plots" / "overlays.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"overlays\.safetensors: cannot be read"):
        read_overlays(read_run(folder))
