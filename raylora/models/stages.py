"""A model as an ordered list of stages, so that "everything before the first trained stage" is a question with an answer."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from raylora.core.tree import ADAPTERS

Tensors = tuple[Tensor, ...]
"""What passes between two stages: the image before the first, the logits after the last, features and skips in between."""

_ADAPTER_PREFIX = re.compile(rf"^({'|'.join(ADAPTERS[1:])}|router)\.")  # names in a Tree that stand before the module path


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a forward pass.

    `block` is the number of the adapter block it computes (the index into the model's `adapter_blocks`), or None.
    `modules` are the modules and parameters it uses, as dotted prefixes.
    """

    name: str
    run: Callable[[Tensors], Tensors]
    block: int | None = None
    modules: tuple[str, ...] = field(default=())

    def holds(self, name: str) -> bool:
        """Whether a parameter, or an adapter's tensor in a Tree, belongs to this stage."""
        path = _ADAPTER_PREFIX.sub("", name)
        return any(path == module or path.startswith(f"{module}.") for module in self.modules)


def run_stages(stages: Sequence[Stage], tensors: Tensors) -> Tensors:
    """The tensors after the last of the stages."""
    for stage in stages:
        tensors = stage.run(tensors)
    return tensors


def first_trained(stages: Sequence[Stage], trained: Iterable[str]) -> int:
    """The index of the first stage that holds one of the trained names; ``len(stages)`` if nothing is trained.

    What comes before it is a fixed function of the image: it needs no gradient and can be computed once for each image.
    Raises ValueError for a name that no stage holds.
    """
    first = len(stages)
    for name in trained:
        holders = [index for index, stage in enumerate(stages) if stage.holds(name)]
        if not holders:
            raise ValueError(f"no stage holds the trained name {name!r}; stages: {', '.join(stage.name for stage in stages)}")
        first = min(first, holders[0])
    return first
