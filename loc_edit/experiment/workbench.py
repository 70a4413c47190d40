"""What all units of work share: configuration, model, noise, statistics; and the names of cells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from loc_edit.editing.settings import Settings
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.facts.fact import Fact
from loc_edit.keys.corpora import corpus_content
from loc_edit.keys.moments import KeyStats
from loc_edit.localization.cells import Localization
from loc_edit.models.identity import fingerprint
from loc_edit.models.model import Model
from loc_edit.names import METHODS, PROBLEMS
from loc_edit.prompts.noise import Corruption
from loc_edit.store.settings import cell_key

NEED_STATS = tuple(name for name, method in METHODS.items() if method.contexts)
"""Methods that need key statistics and context texts."""


@dataclass(frozen=True)
class Cell:
    """One problem, method and layer of the grid."""

    problem: str
    method: str
    window: int
    layer: int
    settings: Settings

    def __str__(self) -> str:
        return f"{self.problem}, {self.method}-{self.window}, layer {self.layer}"


@dataclass(frozen=True)
class Workbench:
    """What all units share, and the names of cells.

    A cell's name holds all that its rows depend on but for the fact, and nothing else: a changed noise leaves edits as
    they are that see none, and another corpus leaves fine-tuning as it is.

    Attributes:
        config: the experiment's configuration.
        model: the model.
        corruption: the subject noise.
        layers: the lowest layers that edits will change.
        contexts: the editors' context texts, by method.
        stats: makes the key statistics, when an editor first asks for them.
        data: the data set that reference prompts are drawn from, where a localiser wants them.
    """

    config: ExperimentConfig
    model: Model
    corruption: Corruption
    layers: Sequence[int]
    contexts: Mapping[str, Sequence[str]]
    stats: Callable[[], KeyStats]
    data: Sequence[Fact] = ()
    _names: dict[object, str] = field(default_factory=dict, repr=False, compare=False)

    def trace_cell(self, what: Localization) -> str:
        """Names all that a trace's numbers depend on, but for the fact."""
        return self._name(what, lambda: {**self._noise, "site": self.config.site, **what.about(self._prompts_of_data)})

    def edit_cell(self, cell: Cell) -> str:
        """Names all that an edit's numbers depend on, but for the fact."""
        config = self.config

        def about() -> dict[str, Any]:
            found = {**self._scores(cell.problem), "cell": asdict(cell)}
            if cell.method in NEED_STATS:
                found["contexts"] = list(self.contexts.get(METHODS[cell.method].contexts or "", ()))
                found["corpus"] = [corpus_content(config.corpus), config.corpus_tokens, config.ridge]
            return found

        return self._name(cell, about)

    def unedited_cell(self, problem: str) -> str:
        """Names all that an unedited row's numbers depend on, but for the fact."""
        return self._name(("none", problem), lambda: {**self._scores(problem), "control": "none", "problem": problem})

    def _scores(self, problem: str) -> dict[str, Any]:
        """What scores depend on for a problem: noise too, where the problem sees any."""
        noise = self._noise if PROBLEMS[problem].sees_noise else {}
        return {**noise, "essence": self.config.essence}

    @property
    def _noise(self) -> dict[str, Any]:
        return {**self.corruption.identity, "samples": self.config.noise_samples}

    def _name(self, key: object, about: Callable[[], dict[str, Any]]) -> str:
        """The name of a cell, made once."""
        if key not in self._names:
            self._names[key] = cell_key({"model": self._fingerprint, "seed": self.config.seed, **about()})
        return self._names[key]

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.model)

    @cached_property
    def _prompts_of_data(self) -> str:
        """A digest of what reference prompts depend on."""
        return cell_key({"prompts": [[f.fact_id, f.relation, f.template, f.subject] for f in self.data]})
