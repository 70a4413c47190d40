"""A cell of the grid: what every kind of cell says about itself and does."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import pandas as pd

from loc_edit.experiment.batch import Batch
from loc_edit.experiment.setup import Setup
from loc_edit.store.rows import Kind

PLACE = ("problem", "method", "window", "layer")
"""What tells one edit cell from another, as far as a reader of its rows cares."""


@dataclass(frozen=True)
class Cell(ABC):
    """One combination of settings, which has rows for every fact.  A frozen record: equal cells have equal rows."""

    kind: ClassVar[Kind]

    @property
    def needs_stats(self) -> bool:
        """Whether key statistics are needed to compute its rows."""
        return False

    @abstractmethod
    def identity(self, setup: Setup) -> dict[str, Any]:
        """All that its rows depend on but for the model, the seed and the fact; its hash names the cell."""

    def name(self, setup: Setup) -> str:
        """The cell's name, which stands in its rows."""
        return setup.name_of(self, lambda: self.identity(setup))

    def columns(self, setup: Setup) -> dict[str, Any]:
        """What its edit rows say about it."""
        place = {name: value for name, value in self.describe().items() if name in PLACE}
        return {**place, "seed": setup.config.seed, "cell": self.name(setup)}

    def describe(self) -> dict[str, Any]:
        """What it is, as plain values for the run's folder."""
        return asdict(self)

    @abstractmethod
    def rows(self, batch: Batch) -> pd.DataFrame:
        """The rows of a batch of facts."""
