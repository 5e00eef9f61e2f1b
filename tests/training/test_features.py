"""The frozen prefix computed once: cached equals recomputed, whoever computed it; where a pass is cut; what belongs to the key."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_runs import VIT, run, tiny

from raylora import planning
from raylora.core.errors import InputError
from raylora.data.features import cache_report
from raylora.federation.build import build_host
from raylora.models import zoo
from raylora.models.stacked import StackedModel, adapted_modules
from raylora.strategies import STRATEGIES
from raylora.training import features
from raylora.training.features import Cached, Cut, Prefix, choose, cuts, entering
from raylora.training.settings import CacheSpec

UNET_LAST = {"lora__blocks": 1}
VIT_LAST = {"lora__blocks": 1}
ALONE = {"training__batch_size": 1, "evaluation__batch_size": 1}


def adapted(name="vit", blocks=1, dtype=torch.float32, **options) -> StackedModel:
    task = {"vit": "disease", "unet": "segmentation", "cinema": "segmentation"}[name]
    size = (16, 16, 4) if name == "vit" else (32, 32, 4)
    net = zoo.build(name, task, "small", size, VIT if name == "vit" else options.pop("sizes", {})).to(dtype)
    return StackedModel(net, modules=adapted_modules(net, zoo.DEFAULT_TARGETS[name], blocks), plain=net.head_names, **options)


def spec(folder, model, image, dtype="float32", **options) -> CacheSpec:
    cut = cuts(model.backbone, sorted(model.outline.names), image)[-1]
    return CacheSpec(folder=str(folder), bound_bytes=1 << 30, first=cut.first, stage=cut.stage, dtype=dtype, function="test", **options)


def images(count, channels=2, size=(16, 16, 4)):
    return np.random.default_rng(0).random((count, channels, *size), np.float32)


# ---- where a pass is cut


def test_cuts_lie_before_the_first_trained_stage():
    found = cuts(adapted(blocks=1).backbone, sorted(adapted(blocks=1).outline.names), (2, 16, 16, 4))
    assert [(cut.first, cut.stage, cut.elements) for cut in found] == [(1, "patch_embedding", 9 * 16), (2, "blocks.0", 9 * 16)]
    tokens, width = 8, 16
    patches = tokens * width * 2 * 8 * 8 * 2
    block = (tokens + 1) * width * (3 + 1 + 4 + 4) * width
    whole = patches + 2 * block + 27 * width * 2  # the head reads a grid of 27 places
    assert [cut.share for cut in found] == pytest.approx([patches / whole, (patches + block) / whole])


def test_a_large_network_is_measured_without_storage(monkeypatch):
    model = adapted()
    expected = cuts(model.backbone, sorted(model.outline.names), (2, 16, 16, 4))
    monkeypatch.setattr("raylora.training.features.LARGE", 0)
    monkeypatch.setattr(
        torch, "zeros", lambda *size, device, dtype: torch.empty(*size, device=device, dtype=dtype) if str(device) == "meta" else 1 / 0
    )
    assert cuts(model.backbone, sorted(model.outline.names), (2, 16, 16, 4)) == expected
    assert all(weight.device.type == "cpu" for weight in model.weights.values())


def test_what_is_trained_from_the_first_stage_on_has_no_prefix():
    model = adapted("unet", "all")
    assert cuts(model.backbone, sorted(model.outline.names), (1, 32, 32, 4)) == []
    model = adapted("vit", "all", adapters={"": None, "local": 2}, router=True)
    assert [cut.stage for cut in cuts(model.backbone, sorted(model.outline.names), (2, 16, 16, 4))] == ["patch_embedding"]


FOUND = [
    Cut(first=1, stage="a", elements=100, share=0.2),
    Cut(first=2, stage="b", elements=50, share=0.3),
    Cut(first=3, stage="c", elements=200, share=0.9),
]


def chosen(wanted="auto", found=FOUND, bound_bytes=10_000, random=False, image_bytes=100):
    return choose(wanted, found, number_bytes=4, image_bytes=image_bytes, images=10, bound_bytes=bound_bytes, random=random)


@pytest.mark.parametrize(("bound", "stage"), [(8000, "c"), (7999, "b"), (2000, "b"), (1999, None)])
def test_the_latest_cut_that_fits_is_taken(bound, stage):
    cut, why = chosen(bound_bytes=bound)
    assert (cut and cut.stage) == stage and bool(why) == (stage is None)


def test_no_cache_has_its_reason_and_one_that_was_asked_for_is_an_error():
    assert chosen("off") == (None, "off") and chosen("fp32")[0].stage == "c"
    for options, words in [
        ({"found": []}, "the first stage is trained already"),
        ({"random": True}, "random augmentation draws each image anew"),
        ({"bound_bytes": 10}, "features of 10 images take 0.0 GB"),
    ]:
        cut, why = chosen(**options)
        assert cut is None and words in why
        with pytest.raises(InputError, match=rf"^training.cache: bf16 was asked for, but {words}"):
            chosen("bf16", **options)
    little = [replace(FOUND[0], share=0.01)]
    assert chosen(found=little) == (None, "what precedes the first trained stage is 1% of a pass") and chosen("fp32", little)[0]


def test_a_smaller_share_pays_where_features_are_smaller_than_the_image():
    tenth = [replace(FOUND[0], share=0.1)]  # 400 bytes
    assert [chosen(found=tenth, image_bytes=size)[0] for size in (100, 400, 999, 1000)] == [None, None, None, tenth[0]]


# ---- features


@pytest.mark.parametrize(
    ("name", "channels", "size", "dtype"),
    [
        ("vit", 2, (16, 16, 4), torch.float32),
        ("vit", 2, (16, 16, 4), torch.float64),
        ("vit", 2, (16, 16, 4), torch.bfloat16),
        ("unet", 1, (32, 32, 4), torch.float32),
        ("cinema", 1, (32, 32, 4), torch.float32),
    ],
)
def test_cached_equals_recomputed_bit_for_bit(tmp_path, name, channels, size, dtype):
    sizes = {"image_size": size, "embed": 24, "depth": 2, "heads": 2, "conv_chans": [4, 8], "dec_chans": [4, 4, 8, 8, 8]}
    model = adapted(name, 1, dtype, **({"sizes": {k: v for k, v in sizes.items() if k != "image_size"}} if name == "cinema" else {}))
    rng = np.random.default_rng(1)
    tree = {n: rng.normal(0, 0.1, v.shape).astype(np.float32) for n, v in model.outline.initial(rng, rng, 2).items()}
    model.load([tree], [4.0])
    every = images(3, channels, size)
    with torch.no_grad():
        alone = [model(torch.from_numpy(image)[None].to(dtype)) for image in every]
        model.prefix = Prefix(model, spec(tmp_path, model, (channels, *size), str(dtype).removeprefix("torch.")))
        named = [((str(i), "ED"), lambda i=i: every[i]) for i in range(3)]
        for _ in range(2):  # computed, then known
            for i in range(3):
                assert torch.equal(model(*(t.to(dtype) for t in entering(model, named[i : i + 1]))), alone[i])
        assert model.prefix.computed == 3 and cache_report(tmp_path).entries == 3
        model.prefix = Prefix(model, model.prefix.spec)  # another process
        together_ = model(*(t.to(dtype) for t in entering(model, named)))
        torch.testing.assert_close(together_, torch.cat(alone), **({"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}))
        assert model.prefix.computed == 0


def test_bf16_keeps_eight_bits(tmp_path):
    model = adapted()
    exact = Prefix(model, spec(tmp_path, model, (2, 16, 16, 4))).of("x", lambda: images(1)[0])
    prefix = Prefix(model, spec(tmp_path, model, (2, 16, 16, 4), "bfloat16"))
    half = prefix.of("x", lambda: images(1)[0])
    assert half[0].dtype == np.uint16 and half[0].nbytes * 2 == exact[0].nbytes
    (wide,) = prefix.batch([("x", lambda: images(1)[0])])
    assert wide.dtype == torch.float32 and 0 < np.abs(wide[0].numpy() / exact[0] - 1).max() <= 2**-8


def test_the_key_is_everything_that_a_feature_depends_on(tmp_path, monkeypatch):
    def key(change=lambda model: None, computed_in=torch.float32, **options):
        model = adapted(dtype=computed_in)
        change(model)
        return Prefix(model, replace(spec(tmp_path, model, (2, 16, 16, 4)), **options)).key

    def other(name):
        return lambda model: model.set_base({name: model.weights[name].numpy() + 1})

    same = key()
    assert same == key() == key(other("blocks.1.attn.qkv.weight")) == key(other("classification_head.bias")), "behind the cut"
    assert same == key(folder="elsewhere", bound_bytes=1, views=3), "a place, a bound and views are no part of it"
    assert len({same, key(other("blocks.0.attn.qkv.weight")), key(other("cls_token")), key(computed_in=torch.float64)}) == 4
    assert len({same, key(dtype="bfloat16"), key(function="another"), key(first=1, stage="patch_embedding")}) == 4
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert key() != same, "threads change bits"
    finally:
        torch.set_num_threads(threads)
    assert key() == same
    monkeypatch.setattr(features, "kind_of_cpu", lambda: "another maker's")
    assert key() != same, "libraries choose their kernels by the processor"


def test_a_damaged_entry_is_computed_again(tmp_path):
    model = adapted()
    first = Prefix(model, spec(tmp_path, model, (2, 16, 16, 4)))
    expected = first.of("x", lambda: images(1)[0])[0].copy()
    (path,) = tmp_path.rglob("*.arrow")
    data = bytearray(path.read_bytes())
    data[data.index(expected.tobytes()) + 5] ^= 255
    path.write_bytes(data)
    again = Prefix(model, first.spec)
    assert np.array_equal(again.of("x", lambda: images(1)[0])[0], expected) and again.computed == 1
    third = Prefix(model, first.spec)
    assert np.array_equal(third.of("x", lambda: images(1)[0])[0], expected) and third.computed == 0


def test_what_others_keep_is_read_all_the_same(tmp_path, monkeypatch):
    """A cache on a disk that is read-only here, or of files that belong to somebody else."""
    model = adapted()
    first = Prefix(model, spec(tmp_path, model, (2, 16, 16, 4)))
    expected = first.of("x", lambda: images(1)[0])[0].copy()

    def refused(*arguments, **options):
        raise PermissionError(1, "not yours")

    monkeypatch.setattr(os, "utime", refused)
    again = Prefix(model, first.spec)
    assert np.array_equal(again.of("x", lambda: images(1)[0])[0], expected) and again.computed == 0


@pytest.mark.parametrize(("free", "computed"), [(1 << 30, 1), (0, 2)])
def test_what_cannot_be_written_is_remembered_while_there_is_memory(tmp_path, monkeypatch, free, computed):
    monkeypatch.setattr(features, "free_bytes", lambda: free)
    (tmp_path / "file").write_text("no folder")
    model = adapted()
    prefix = Prefix(model, spec(tmp_path / "file", model, (2, 16, 16, 4)))
    one, two = (prefix.of("x", lambda: images(1)[0]) for _ in range(2))
    assert np.array_equal(one[0], two[0]) and prefix.computed == computed


# ---- samples


class Rows:
    """Two samples; every draw adds noise. It counts how often it is asked."""

    asked = 0

    def __len__(self):
        return 2

    def batch(self, indices, rng):
        self.asked += len(indices)
        noise = rng.random((len(indices), 2, 16, 16, 4), np.float32)
        return images(2)[indices] + noise, np.array([[7, i, 300] for i in indices]), np.array([0.5 + i for i in indices], np.float32)


def cached(tmp_path, views):
    model = adapted()
    model.prefix = Prefix(model, spec(tmp_path, model, (2, 16, 16, 4), views=views))
    return Cached(Rows(), model, "a", 0)


def test_samples_keep_their_targets_and_weights_and_are_asked_once(tmp_path):
    samples = cached(tmp_path, None)
    for _ in range(3):
        (features,), targets, weights = samples.batch(np.array([1, 0, 1]), np.random.default_rng(5))
        assert features.shape == (3, 9, 16) and np.array_equal(features[0], features[2]) and not np.array_equal(features[0], features[1])
        assert targets.tolist() == [[7, 1, 300], [7, 0, 300], [7, 1, 300]] and targets.dtype == np.int64
        assert weights.tolist() == [1.5, 0.5, 1.5] and weights.dtype == np.float32
    assert samples.samples.asked == 2 and len(samples) == 2


def test_a_fixed_number_of_views_is_drawn_from(tmp_path):
    samples = cached(tmp_path, 3)
    seen = {samples.batch(np.array([0]), np.random.default_rng(k))[0][0].numpy().tobytes() for k in range(40)}
    assert len(seen) == 3 and samples.samples.asked == 3
    again = cached(tmp_path, 3)
    assert {again.batch(np.array([0]), np.random.default_rng(k))[0][0].numpy().tobytes() for k in range(40)} == seen
    assert again.model.prefix.computed == 0, "the views are the same in the next run"
    one, other = (samples.batch(np.array([0, 1]), np.random.default_rng(k))[0][0].numpy().tobytes() for k in (1, 1))
    assert one == other, "which view follows from the stream alone"


BF16 = {"segmentation": 0.2, "disease": 0.02}  # of a tensor's norm: adapters of a run on rounded features; 0.10 and 0.004 were measured


# ---- whole runs


def weights_of(found, model="global"):
    folder = found.folder / "adapters" / model
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


@pytest.mark.slow
@pytest.mark.parametrize(("task", "last"), [("segmentation", UNET_LAST), ("disease", VIT_LAST)])
def test_a_run_with_the_cache_is_the_run_without(runs, task, last):
    """Bit for bit where every batch is one image, otherwise to rounding."""
    off, on = ({**last, "training__cache": kind} for kind in ("off", "auto"))
    single = [runs(task, **options, **ALONE) for options in (off, on)]
    assert single[0].summary["numerics"]["cache"] == {"why": "off"} and "stage" in single[1].summary["numerics"]["cache"]
    assert single[0].hashes == single[1].hashes
    assert (single[0].folder / "cases.parquet").read_bytes() == (single[1].folder / "cases.parquet").read_bytes()
    without, kept = (weights_of(runs(task, **options)) for options in (off, on))
    for name, value in without.items():
        assert np.linalg.norm(kept[name] - value) <= 1e-5 * np.linalg.norm(value), name
    half = runs(task, **last, training__cache="bf16")
    assert half.summary["numerics"]["cache"]["dtype"] == "bfloat16"
    apart = [np.linalg.norm(value - kept[name]) / np.linalg.norm(kept[name]) for name, value in weights_of(half).items()]
    assert 0 < max(apart) <= BF16[task]
    together = [weights_of(runs(task, **options, training__stack=4)) for options in (off, on)]
    for name, value in together[0].items():
        assert np.linalg.norm(together[1][name] - value) <= 1e-5 * np.linalg.norm(value), name


def test_a_second_run_computes_nothing_and_is_the_same(prepared_folder, tmp_path, monkeypatch):
    config = tiny(prepared_folder, "disease", **VIT_LAST, data__cache=str(tmp_path / "cache"))
    first = run(config, tmp_path / "first")
    assert cache_report(tmp_path / "cache" / "features").entries == 32 - 4, "every image once; nobody asks for the rating cases"
    monkeypatch.setattr(Prefix, "_compute", None)
    second = run(config, tmp_path / "second")
    other = run(
        tiny(prepared_folder, "disease", **VIT_LAST, data__cache=str(tmp_path / "cache"), strategy={"name": "flora"}), tmp_path / "flora"
    )
    assert second.hashes == first.hashes != other.hashes, "rounds, runs and strategies share what was computed"
    assert (second.folder / "cases.parquet").read_bytes() == (first.folder / "cases.parquet").read_bytes()


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_method_changes_a_weight_before_the_cut(prepared_folder, name):
    """What is folded into the base lies in adapted layers, and those lie behind it."""
    plan = planning.make_plan(tiny(prepared_folder, "disease", **VIT_LAST, strategy={"name": name}))
    if plan.spec.model.full:
        assert plan.spec.cache is None and plan.no_cache == "the first stage is trained already"
        return
    host = build_host(plan.spec, plan.weights)
    assert host.model.prefix.first == 2 and not host.model.prefix.holds([f"{path}.weight" for path in host.model.layers])


def test_a_base_that_changes_before_the_cut_has_other_features(prepared_folder):
    plan = planning.make_plan(tiny(prepared_folder, "disease", **VIT_LAST))
    host = build_host(plan.spec, plan.weights)
    prefix, case = host.model.prefix, host.sites["GE"].shard.test[0]
    (before,) = prefix.of("x", lambda: case.images["ED"][None].repeat(2, 0))
    host.set_base({"blocks.1.attn.qkv.weight": plan.weights["blocks.1.attn.qkv.weight"] + 1})
    assert host.model.prefix is prefix
    host.set_base({"blocks.0.attn.qkv.weight": plan.weights["blocks.0.attn.qkv.weight"] + 1})
    assert host.model.prefix.key != prefix.key
    (after,) = host.model.prefix.of("x", lambda: case.images["ED"][None].repeat(2, 0))
    assert not np.array_equal(before, after)
    host.set_base({})
    assert host.model.prefix.key == prefix.key


def test_random_augmentation_has_a_number_of_views_or_no_cache(prepared_folder, tmp_path):
    options = {**VIT_LAST, "training__augment": 0.5}
    none = planning.make_plan(tiny(prepared_folder, "disease", **options))
    assert none.spec.cache is None and "training.cached_views" in none.no_cache
    found = run(tiny(prepared_folder, "disease", **options, training__cached_views=2), tmp_path / "run")
    assert found.summary["numerics"]["cache"] == {"stage": "blocks.0", "dtype": "float32", "views": 2, "batch": 1}
    with pytest.raises(InputError, match=r"training: cache fp32 with random augmentation needs cached_views"):
        tiny(prepared_folder, "disease", **options, training__cache="fp32")
    with pytest.raises(InputError, match=r"training: cached_views are of training.augment, which is 0"):
        tiny(prepared_folder, "disease", training__cached_views=2)
    with pytest.raises(InputError, match=r"training: cached_views are kept by training.cache, which is off"):
        tiny(prepared_folder, "disease", **options, training__cached_views=2, training__cache="off")
    nothing = run(tiny(prepared_folder, training__augment=0.5, training__cached_views=2), tmp_path / "all")
    said = [event["text"] for event in nothing.events if event["event"] == "note"]
    assert nothing.plan.spec.cache is None and any(text.startswith("training.cached_views: nothing is kept (") for text in said), said


def test_what_is_wide_inside_is_measured_without_storage(monkeypatch):
    """A small image and few parameters can still make large tensors: nothing of it is kept in memory before a run has begun."""
    model = adapted("unet", 1)
    expected = cuts(model.backbone, sorted(model.outline.names), (1, 32, 32, 4))
    devices = []
    for stage in ("input_block", "bottleneck"):
        model.backbone.get_submodule(stage).register_forward_hook(lambda module, inputs, output: devices.append(output.device.type))
    monkeypatch.setattr(features._passed, "__defaults__", (8 * 32 * 32 * 4 - 1,))
    assert cuts(model.backbone, sorted(model.outline.names), (1, 32, 32, 4)) == expected
    assert devices == ["cpu", "meta", "meta"], "it was given up after the first stage"
