"""Names are chosen by patterns, differences are listed, arguments stay as they are."""

import numpy as np
import pytest

from raylora.core import tree as trees
from raylora.core.errors import RunError

NAMES = ("q.lora_A", "q.lora_B", "local.q.lora_A", "local.q.lora_B", "rest.q.lora_A", "rest.q.lora_B", "router.q.weight", "head.weight")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("*",), NAMES),
        ((), ()),
        (("*.lora_A", "!local.*"), ("q.lora_A", "rest.q.lora_A")),
        (("!local.*", "*"), NAMES),  # the last pattern that fits decides
        (("*", "!*.lora_[AB]", "local.*"), ("local.q.lora_A", "local.q.lora_B", "router.q.weight", "head.weight")),
        (trees.HEAD, ("head.weight",)),
        (trees.shared_names("shared"), ("q.lora_A", "q.lora_B", "head.weight")),
        (trees.shared_names("private"), ("q.lora_A", "q.lora_B")),
        (trees.shared_names("shared", "*.lora_B"), ("q.lora_B", "head.weight")),
        (trees.private_names("shared"), ("local.q.lora_A", "local.q.lora_B")),
        (trees.private_names("private"), ("local.q.lora_A", "local.q.lora_B", "head.weight")),
        (("Q.*",), ()),  # case counts
    ],
)
def test_match(patterns: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert trees.match(NAMES, patterns) == expected


def test_select() -> None:
    tree = {"a": np.zeros(1), "b": np.ones(1)}
    assert trees.select(tree, ("b",)) == {"b": tree["b"]}


def test_freeze_is_float32_read_only_and_copies_what_can_change() -> None:
    mine = np.array([1.0, 2.0], np.float32)
    kept = trees.freeze({"w": mine})["w"]
    mine[0] = 9.0
    assert kept.dtype == np.float32 and kept.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 3.0
    assert trees.freeze({"w": kept})["w"] is kept


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ({"b": np.zeros(2)}, r"names differ; missing \['a'\], not expected \['b'\]"),
        ({"a": np.zeros(3)}, r"a has shape \(3,\), expected \(2,\)"),
        ({"a": np.array([0.0, np.nan])}, "a is not finite"),
        ({"a": np.array(["x", "y"])}, "a is <U1, expected floating-point numbers"),
    ],
)
def test_require_same_lists_the_difference(got: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(RunError, match="client x: " + message):
        trees.require_same({"a": np.zeros(2)}, got, "client x")


def test_sums_run_in_float64() -> None:
    big, small = np.array([1.0], np.float32), np.array([1e-9], np.float32)
    assert trees.weighted_sum([{"w": big}, {"w": small}], [1.0, 1.0])["w"][0] == 1.0 + float(small[0])
    assert trees.add({"w": big, "v": big}, {"w": small}, 2.0)["w"][0] == 1.0 + 2 * float(small[0])
    assert trees.subtract({"w": big}, {"w": small})["w"][0] == 1.0 - float(small[0])


def test_norm_and_size_are_over_all_names() -> None:
    tree = {"a": np.array([3.0]), "b": np.array([[0.0, 4.0]])}
    assert trees.norm(tree) == 5.0 and trees.size(tree) == 3 and trees.inner(tree, tree) == 25.0
    assert trees.norm(trees.zeros(tree)) == 0.0


@pytest.mark.parametrize("shape", [(), (0,), (3, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_finite(shape, dtype):
    array = np.full(shape, 3e38, dtype)  # whose square is no float32
    assert trees.finite(array) and trees.finite(-array.T)
    for odd in (np.nan, np.inf, -np.inf):
        if array.size:
            array[(-1,) * array.ndim] = odd
            assert not trees.finite(array) and not trees.finite(array.T)
