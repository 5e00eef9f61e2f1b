"""What stands in for torch's own where that has no fixed order on a GPU: the same function, with the same gradient."""

import pytest
import torch
from torch.nn import functional as F

from raylora.models.attention import Recomputed
from raylora.models.vit import GRID, _means


@pytest.mark.parametrize("wanted", [7, 1])
def test_recomputed_attention_is_attention(wanted):
    draws = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64, generator=draws, requires_grad=True) for n in (wanted, 7, 7))
    assert torch.autograd.gradcheck(Recomputed.apply, (q, k, v))
    ours, torchs = Recomputed.apply(q, k, v), F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)
    by = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad(value, (q, k, v), by) for value in (ours, torchs)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("grid", [(6, 6, 3), (4, 5, 7), (3, 3, 3), (2, 6, 1)])
def test_means_axis_by_axis_are_means_over_boxes(grid):
    maps = torch.randn(2, 5, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours, torchs = _means(maps), F.adaptive_avg_pool3d(maps, GRID)
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)
    by = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad(value, maps, by)[0] for value in (ours, torchs)), rtol=1e-12, atol=1e-12)
