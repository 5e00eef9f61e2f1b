"""What data a set of base weights has already seen: such cases must not be scored as if they were new."""

import json
from dataclasses import dataclass
from pathlib import Path

from raylora.core.errors import InputError
from raylora.models.arrays import read_header
from raylora.models.files import PUBLISHED


@dataclass(frozen=True, kw_only=True)
class Seen:
    """`splits`: pairs (data set, split), "*" for every split; `cases`: hashes of single cases; `phantom_seeds`: of the synthetic cohorts,
    whose persons are the same under every scanner and in every layout."""

    splits: frozenset[tuple[str, str]] = frozenset()
    cases: frozenset[str] = frozenset()
    phantom_seeds: frozenset[int] = frozenset()
    told: bool = True  # False: nobody says what they have seen

    def covers(self, dataset: str, split: str, case_hash: str = "") -> bool:
        """Whether a case of this data set and official split, or with this hash, was seen."""
        return bool({(dataset, split), (dataset, "*")} & self.splits) or case_hash in self.cases

    def metadata(self) -> dict[str, str]:
        """For the header of a safetensors file."""
        about = {"splits": sorted(self.splits), "cases": sorted(self.cases), "phantom_seeds": sorted(self.phantom_seeds)}
        about |= {} if self.told else {"told": False}
        return {"seen": json.dumps(about)}


def read_seen(path: str | Path) -> Seen:
    """What the weights in a safetensors file have seen: its header says it, or its published name does.

    A published fine-tuned CineMA file counts as having seen its whole set. Of another file that says nothing
    nobody knows (`told`). Raises InputError for a file that is no safetensors file, or a header that is not ours.
    """
    header = read_header(path).get("seen")
    if header is not None:
        try:
            value = json.loads(header)
            return Seen(
                splits=frozenset((str(a), str(b)) for a, b in value["splits"]),
                cases=frozenset(map(str, value["cases"])),
                phantom_seeds=frozenset(map(int, value.get("phantom_seeds", ()))),
                told=bool(value.get("told", True)),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: its header's entry 'seen' is not an object of splits and cases ({error!r})") from None
    published = PUBLISHED.fullmatch(Path(path).name)
    if published:
        return Seen(splits=frozenset({(published["data"], "*")}))
    return Seen(told=False)
