"""Sweep files: what they expand to, and what they are refused for."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import settings as tiny_settings

from raylora import config as configuration
from raylora.core.errors import InputError
from raylora.core.values import laid_over
from raylora.schema import validated
from raylora.sweep import space
from raylora.sweep.space import Dimension, Sweep


def write(folder: Path, **changes) -> Path:
    """A sweep file beside its base experiment."""
    (folder / "base.yaml").write_text(yaml.safe_dump(tiny_settings(folder / "data")))
    values = {"name": "some", "base": "base.yaml", "space": {"lora.rank": {"grid": [1, 2]}}, **changes}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_grid_is_the_product_of_its_lists_with_seeds_innermost(tmp_path):
    sweep = space.load(write(tmp_path, space={"lora.rank": {"grid": [1, 2]}, "training.lr": {"choice": [0.1, 0.2, 0.3]}}, seeds=[5, 6]))
    trials = space.trials(sweep)
    assert len(trials) == 2 * 3 * 2
    assert [t.number for t in trials] == list(range(12))
    assert [(t.values["lora.rank"], t.values["training.lr"], t.seed) for t in trials[:3]] == [(1, 0.1, 5), (1, 0.1, 6), (1, 0.2, 5)]
    config = sweep.config(trials[-1].values, trials[-1].seed, 11)
    assert (config.lora.rank, config.training.lr, config.seed, config.name) == (2, 0.3, 6, "some-011")


def test_a_whole_section_can_be_a_value(tmp_path):
    strategies = [{"name": "fedit"}, {"name": "rate_my_lora", "temperature": math.inf}]
    sweep = space.load(write(tmp_path, space={"strategy": {"grid": strategies}}))
    configs = [sweep.config(t.values, t.seed, t.number) for t in space.trials(sweep)]
    assert [c.strategy.name for c in configs] == ["fedit", "rate_my_lora"]
    assert configs[1].strategy.options["temperature"] == math.inf


def test_trials_share_no_values(tmp_path):
    sections = [{"name": "rate_my_lora"}, {"name": "fedit"}]
    sweep = space.load(write(tmp_path, space={"strategy": {"grid": sections}}))
    laid = laid_over(sweep.base, {"strategy": sections[0], "strategy.temperature": 0.5}, "")
    assert laid["strategy"] == {"name": "rate_my_lora", "temperature": 0.5} and sections[0] == {"name": "rate_my_lora"}


def test_random_draws_depend_on_seed_and_number_alone(tmp_path):
    def drawn(**search):
        dimensions = {"training.lr": {"loguniform": [0.001, 0.1]}, "lora.rank": {"integer": [1, 4]}}
        return [t.values for t in space.trials(space.load(write(tmp_path, space=dimensions, search={"kind": "random", **search})))]

    assert drawn(trials=5) == drawn(trials=8)[:5]
    assert drawn(trials=5) != drawn(trials=5, seed=1)


def test_a_grid_is_crossed_with_each_draw_of_a_random_search(tmp_path):
    dimensions = {"training.lr": {"uniform": [0.001, 0.1]}, "lora.rank": {"grid": [1, 2]}}
    trials = space.trials(space.load(write(tmp_path, space=dimensions, search={"kind": "random", "trials": 3})))
    assert [t.values["lora.rank"] for t in trials] == [1, 2] * 3
    assert len({t.values["training.lr"] for t in trials}) == 3


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1.0), st.floats(1.5, 1e4), st.integers(0, 1000))
def test_draws_stay_inside(low, factor, seed):
    rng = space.generator(seed, "sweep")
    assert low <= Dimension(loguniform=(low, low * factor)).draw(rng) <= low * factor * (1 + 1e-9)
    assert low <= Dimension(uniform=(low, low * factor)).draw(rng) <= low * factor
    assert 1 <= Dimension(integer=(1, 3)).draw(rng) <= 3


def test_loguniform_is_uniform_in_the_logarithm():
    rng = space.generator(0, "sweep")
    draws = [math.log10(Dimension(loguniform=(0.01, 10.0)).draw(rng)) for _ in range(4000)]
    shares = [sum(low <= d < low + 1 for d in draws) / 4000 for low in (-2, -1, 0)]
    assert all(abs(share - 1 / 3) < 0.03 for share in shares)  # four standard errors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": {"metric": "balanced_accuracy"}}, "a test metric never chooses"),
        ({"objective": {"metric": "dice_lv"}}, "a test metric never chooses"),
        ({"space": {"lora.rnk": {"grid": [1]}}}, "did you mean 'rank'"),
        ({"space": {"lora.rank": {"grid": [0]}}}, "lora.rank"),
        ({"space": {"lora.rank": {"grid": [1], "choice": [2]}}}, "exactly one of"),
        ({"space": {"training.lr": {"uniform": [0.1, 0.01]}}, "search": {"kind": "random", "trials": 2}}, "low < high"),
        ({"space": {"training.lr": {"uniform": [0.01, 0.1]}}}, "search.kind random draws from it"),
        ({"space": {"seed": {"grid": [1]}}}, "seeds: repeats"),
        ({"space": {"placement.timeout_s": {"grid": [1]}}}, "does not change what is learnt"),
        ({"space": {}}, "space"),
        ({"search": {"kind": "random"}}, "trials"),
        ({"serch": {}}, "did you mean 'search'"),
        ({"base": "nowhere.yaml"}, "no such file"),
        ({"base": 3}, "expected the path"),
        ({"base": {"lora": {"rnk": 1}}}, "did you mean 'rank'"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0, 1, 0]}, "found 0 twice"),
        ({"space": {"lora.rank": {"grid": [1, 2, 1]}}}, "found 1 twice"),
        ({"space": {"training.lr": {"grid": [1, 0.5, 1.0]}}}, "found 1.0 twice"),
        ({"space": {"training.lr": {"uniform": [-1e308, 1e308]}}, "search": {"kind": "random", "trials": 2}}, "a finite number apart"),
        ({"space": {"strategy": {"grid": [{"name": "fedit"}]}, "strategy.name": {"grid": ["local"]}}}, "lies in space.strategy"),
        ({"space": {"lora.rank": {"integer": [1, 4 * 10**20]}}, "search": {"kind": "random", "trials": 2}}, "less than or equal"),
        ({"search": {"kind": "optuna", "trials": 2, "seed": -1}}, "search.seed"),
        ({"search": {"kind": "optuna", "trials": 2}, "space": {"lora.blocks": {"choice": [1, "all", -5]}}}, "lora.blocks -5"),
        ({"space": {"lora.rank": {"grid": list(range(1, 102))}, "lora.alpha": {"grid": list(range(1, 102))}}}, "at most 10000 trials"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path, changes, words):
    with pytest.raises(InputError) as caught:
        space.load(write(tmp_path, **changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_scheduler_needs_validation(tmp_path):
    path = write(tmp_path, scheduler={"kind": "asha"})
    with pytest.raises(InputError, match=r"evaluation\.every"):
        space.load(path, ["evaluation.every=0"])


def test_overrides_go_to_the_sweep_or_to_its_base(tmp_path):
    sweep = space.load(write(tmp_path), ["limits.concurrent=3", "training.rounds=7", "seeds=[1, 2]"])
    assert (sweep.limits.concurrent, sweep.base["training"]["rounds"], sweep.repeats) == (3, 7, [1, 2])


def test_limits_cut_and_do_not_make_another_sweep(tmp_path):
    whole, cut = space.load(write(tmp_path)), space.load(write(tmp_path), ["limits.trials=1"])
    assert len(space.trials(cut)) == 1
    assert whole.sha256() == cut.sha256()
    assert whole.sha256() != space.load(write(tmp_path), ["training.rounds=9"]).sha256()


def test_a_sweep_can_be_read_back(tmp_path):
    from raylora import config

    sweep = space.load(write(tmp_path, seeds=[1]))
    assert validated(Sweep, yaml.safe_load(config.dump(sweep)), "again").sha256() == sweep.sha256()


def test_the_length_of_a_round_is_swept_in_either_unit(tmp_path):
    """A resolved base names one of the two (`local_epochs: 1`, where its file names none)."""
    base = tiny_settings(tmp_path / "data")
    del base["training"]["local_steps"]
    grids = {"training.local_steps": {"grid": [4, None]}}
    sweep = Sweep.model_validate({"base": configuration.from_dict(base).as_dict(), "space": grids})
    found = [sweep.config(t.values, t.seed, t.number).training for t in space.trials(sweep)]
    assert [(t.local_epochs, t.local_steps) for t in found] == [(None, 4), (1, None)]
    both = {"training.local_steps": 4, "training.local_epochs": 2}
    with pytest.raises(InputError, match="not both"):
        sweep.config(both, 0, 0)
