"""What a server knows of an adapted network: the names, shapes and first values of everything that is not its frozen base. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np


def prefixed(adapter: str, name: str) -> str:
    """The tree's name of an adapter's tensor: the global adapter's names are bare, others stand behind ``<adapter>.``."""
    return f"{adapter}.{name}" if adapter else name


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that adapters are added to: the sides of its flattened weight, and a convolution's kernel."""

    inputs: int  # of a convolution: channels times kernel
    outputs: int
    kernel: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outline:
    """`StackedModel` without its computation."""

    plain: Mapping[str, np.ndarray]  # what is trained as it is -> its first value, float32, read-only
    layers: Mapping[str, Layer]  # module path -> its layer, in forward order
    adapters: Mapping[str, int | None]  # name -> rank of its own; None: the client's
    router: bool = False

    @cached_property
    def names(self) -> frozenset[str]:
        """Of every tensor that a client's tree holds."""
        names = set(self.plain)
        for adapter in self.adapters:
            names |= {prefixed(adapter, f"{path}.lora_{side}") for path in self.layers for side in "AB"}
        return frozenset(names | ({f"router.{path}.weight" for path in self.layers} if self.router else set()))

    def initial(self, shared: np.random.Generator, private: np.random.Generator, rank: int) -> dict[str, np.ndarray]:
        """A client's first tree: A uniform in +-1/sqrt(fan in) (peft's default), B zero, plain parts and router from the base and zero.

        The global adapter follows from `shared`, the others from `private`.
        """
        tree: dict[str, np.ndarray] = dict(self.plain)
        for adapter, own_rank in self.adapters.items():
            r = rank if own_rank is None else own_rank
            rng = private if adapter else shared
            for path, layer in self.layers.items():
                bound = layer.inputs**-0.5
                tree[prefixed(adapter, f"{path}.lora_A")] = rng.uniform(-bound, bound, size=(r, layer.inputs)).astype(np.float32)
                tree[prefixed(adapter, f"{path}.lora_B")] = np.zeros((layer.outputs, r), np.float32)
        if self.router:
            for path, layer in self.layers.items():
                tree[f"router.{path}.weight"] = np.zeros((len(self.adapters), layer.inputs), np.float32)
        return dict(sorted(tree.items()))
