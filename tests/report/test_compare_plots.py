import numpy as np
import pytest
from make_run import make_run

from raylora.report.compare import compare
from raylora.report.compare_plots import block_pictures, pareto, scores_picture, swept_keys
from raylora.report.figures import LIGHT


def test_the_pareto_front_by_hand():
    #          cheap, bad   dominated   better    same cost, worse   dear, best
    points = [(1.0, 0.5), (2.0, 0.4), (2.0, 0.7), (2.0, 0.6), (9.0, 0.9)]
    assert pareto(points) == [True, False, True, False, True]
    assert pareto([(1.0, 0.5), (1.0, 0.5)]) == [True, True]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    root = tmp_path_factory.mktemp("swept")
    runs = []
    for rank in (2, 8):
        for blocks in (1, "all"):
            quality, validation = (0.8 + r / 100 + (blocks == "all") / 20 for r in (rank, 10 - rank))  # the other way round
            name = f"{rank}_{blocks}"
            config = {"lora.rank": rank, "lora.blocks": blocks, "training.lr": 0.001 * rank}
            runs.append(make_run(root / name, quality=quality, validation=validation, rounds=1, patients=3, config=config))
    return compare(runs, replicates=200).blocks[0]


def test_swept_keys_are_drawn_and_rank_meets_blocks(swept):
    assert swept_keys(swept) == ["lora.blocks", "lora.rank", "training.lr"]
    names = [p.name for p in block_pictures(swept)]
    assert names == [
        "segmentation_scores",
        "segmentation_bytes",
        "segmentation_seconds",
        "segmentation_by_lora_blocks",
        "segmentation_by_lora_rank",
        "segmentation_by_training_lr",
        "segmentation_rank_by_blocks_fedit",
    ]


def test_a_key_shows_the_mean_over_the_configurations_with_each_value(swept):
    picture = next(p for p in block_pictures(swept) if p.name == "segmentation_by_lora_rank")
    by_rank = {rank: [s.in_client.value for s in swept.scores if s.settings["lora.rank"] == rank] for rank in (2, 8)}
    found = {row[1]: row[2] for row in picture.data.rows}
    assert {r: found[str(r)].value for r in (2, 8)} == pytest.approx({r: np.mean(v) for r, v in by_rank.items()})
    assert all(e.low < e.value < e.high for e in found.values())
    chosen_by = {rank: [s.validation.value for s in swept.scores if s.settings["lora.rank"] == rank] for rank in (2, 8)}
    on_validation = {row[1]: row[3] for row in picture.data.rows}
    assert {r: on_validation[str(r)].value for r in (2, 8)} == pytest.approx({r: np.mean(v) for r, v in chosen_by.items()})
    assert "Highest on validation patients: fedit at 2: " in picture.alt


def test_nothing_is_a_value_too_and_lists_and_sections_are_read_as_in_tables(tmp_path):
    settings = [
        {"training.clip": None, "lora.blocks": [0, 1], "model.sizes": {}, "lora.rank": 4},
        {"training.clip": 1.0, "lora.blocks": "all", "model.sizes": {"channels": [8, 16]}, "lora.rank": {"A": 2}},
    ]
    qualities = (0.9, 0.7)
    runs = [
        make_run(tmp_path / f"{i}", quality=q, rounds=1, patients=3, config=c)
        for i, (q, c) in enumerate(zip(qualities, settings, strict=True))
    ]
    block = compare(runs, replicates=200).blocks[0]
    pictures = {p.name: p for p in block_pictures(block)}
    clip = pictures["segmentation_by_training_clip"]
    assert {row[1] for row in clip.data.rows} == {"-", "1"} and "fedit at -: 0.9" in clip.alt
    assert {row[1] for row in pictures["segmentation_by_lora_blocks"].data.rows} == {"[0,1]", "all"}
    assert {row[1] for row in pictures["segmentation_by_model_sizes_channels"].data.rows} == {"-", "[8,16]"}
    assert not [name for name in pictures if "rank" in name], "a value here and a section there stand on no axis"
    assert all(picture.draw(LIGHT) for picture in pictures.values())


def test_the_heat_map_holds_every_cell(swept):
    picture = next(p for p in block_pictures(swept) if "rank_by_blocks" in p.name)
    scores = {(s.settings["lora.rank"], s.settings["lora.blocks"]): s.in_client.value for s in swept.scores}
    assert picture.data.rows == (("2", scores[2, 1], scores[2, "all"]), ("8", scores[8, 1], scores[8, "all"]))
    assert "Highest: " in picture.alt and "rank 8, blocks all" in picture.alt


def test_a_score_without_an_interval_has_no_bar_and_no_promise_of_one(tmp_path):
    """A bar of no width would say that no patient was on the other side."""
    runs = [make_run(tmp_path / str(n), patients=n, strategy=s, rounds=1) for n, s in ((1, "fedit"), (3, "local"))]
    for run in runs:
        block = compare([run], replicates=200).blocks[0]
        picture = scores_picture(block)
        has = block.scores[0].in_client.low is not None
        assert ("with 95 % intervals" in picture.title) == has
        bars = picture.draw(LIGHT).axes[0].containers[0].lines[2][0].get_segments()
        assert (bars[-1].size > 0 and bool(np.isfinite(bars[-1]).all())) == has
