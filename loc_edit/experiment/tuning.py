"""The choice of a method's settings: a grid of them at one layer, on the first facts (Hase et al. 2023, appendix B).

A tuning is an experiment whose cells differ in their settings, so it is stopped and resumed like one.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import tomli_w

from loc_edit.analysis.run import Run
from loc_edit.experiment.config import BadConfig, ExperimentConfig
from loc_edit.experiment.experiment import Experiment
from loc_edit.experiment.random_layer import RandomLayerCell
from loc_edit.experiment.setup import Setup
from loc_edit.experiment.study import EditCell
from loc_edit.files import DATA, write_atomic
from loc_edit.names import parse_method

GRIDS_PATH = DATA / "tuning.toml"
TOP_REWRITE = 0.99
"""A rewrite score above this counts as this: more of it is worth nothing."""

Grid = Mapping[str, Mapping[str, Any]]
"""Method -> setting -> list of values to try; `finetune` counts for every window, `finetune-5` for that one."""


def grids() -> dict[str, Grid]:
    """The grids that ship with the package: `paper` and `builtin`."""
    return tomllib.loads(GRIDS_PATH.read_text(encoding="utf-8"))


class Tuning(Experiment):
    """An experiment at one layer, whose cells are the problems x methods x combinations of a grid.

    Args:
        config: facts, methods, problems; `layers` has one layer, or is `None` for the one a third of the way up.
            What the grid does not name comes from its preset and settings.
        grid: see `Grid`.

    Raises:
        BadConfig: more than one layer, a method with nothing to try, or a setting that it does not have.
    """

    def __init__(self, config: ExperimentConfig, grid: Grid) -> None:
        super().__init__(config)
        self.setup = Setup(config, default_layers=lambda n_layers: [n_layers // 3])
        if config.layers is not None and len(config.layers) != 1:
            raise BadConfig(f"layers {list(config.layers)}: settings are tuned at one layer")
        self.grid = grid
        self.candidates = {
            (problem, method): self._candidates(problem, method)
            for problem in config.problems
            for method in config.methods
        }

    def _candidates(self, problem: str, name: str) -> list[dict[str, Any]]:
        """Every combination of values for a method, as settings that differ from its own."""
        method, window = parse_method(name)
        values = self.grid.get(f"{method}-{window}", self.grid.get(method))
        if not values:
            raise BadConfig(f"method {name!r}: the grid has no values to try; it has {', '.join(self.grid)}")
        if bad := [key for key, listed in values.items() if not isinstance(listed, list | tuple) or not listed]:
            raise BadConfig(f"grid of {name}: expected a list of values, got {bad[0]} = {values[bad[0]]!r}")
        if twice := [key for key, listed in values.items() if len(set(listed)) < len(listed)]:
            raise BadConfig(f"grid of {name}: a value stands twice in {twice[0]} = {values[twice[0]]!r}")
        candidates = [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]
        for candidate in candidates:
            try:
                self.config.settings_of(name, problem, candidate)
            except ValueError as error:
                raise BadConfig(f"grid of {name}: {error}") from error
        return candidates

    @cached_property
    def cells(self) -> list[EditCell]:  # type: ignore[override]
        """Every problem x method x candidate: nothing is traced, and there are no controls."""
        [layer] = self.setup.layers
        return [
            EditCell(problem, *parse_method(method), layer, self.config.settings_of(method, problem, candidate))
            for (problem, method), candidates in self.candidates.items()
            for candidate in candidates
        ]

    @property
    def copied_cells(self) -> list[RandomLayerCell]:
        """No controls."""
        return []

    def resolved(self) -> dict[str, Any]:
        """The whole configuration, with the grid."""
        grid: dict[str, Any] = {name: dict(values) for name, values in self.grid.items()}
        return {**super().resolved(), "settings": {}, "grid": grid}

    def tried(self, run: Run, floor: float) -> pd.DataFrame:
        """A row per candidate: its settings, mean scores, how many edits, and whether it is the choice.

        The choice of a problem and method is the candidate of the best rewrite score, counted up to .99, among
        those whose neighborhood is at least `floor`; if there is none, among those within .02 of the best
        neighborhood.  Among equals the higher neighborhood wins.
        """
        setup, edits, rows = self.setup_for(run.path), run.edits, []
        for cell, (name, candidate) in zip(self.cells, self._named(), strict=True):
            edits_of_cell = edits[edits["cell"] == cell.name(setup)]
            done = edits_of_cell[edits_of_cell["status"] == "done"]
            means: dict[str, Any] = {name: done[name].mean() for name in ("rewrite", "paraphrase", "neighborhood")}
            counts = {"n": len(done), "failed": int((edits_of_cell["status"] == "failed").sum())}
            place = {"problem": cell.problem, "method": name, "layer": cell.layer}
            rows.append({**place, **candidate, **means, **counts, "seconds": done["seconds"].mean()})
        frame = pd.DataFrame(rows)
        groups = frame.groupby(["problem", "method"], sort=False)
        chosen = {index for _, candidates in groups if (index := choose(candidates, floor)) is not None}
        return frame.assign(chosen=frame.index.isin(chosen))

    def _named(self) -> list[tuple[str, dict[str, Any]]]:
        """Every candidate with its method's name, in the order of the cells."""
        return [(name, candidate) for (_, name), candidates in self.candidates.items() for candidate in candidates]

    def chosen_toml(self, tried: pd.DataFrame) -> str:
        """The chosen settings as TOML, to be put into a configuration: `[settings.rome.error_injection]`."""
        tables: dict[str, dict[str, Any]] = {}
        for (_, row), (name, candidate) in zip(tried.iterrows(), self._named(), strict=True):
            if row["chosen"]:
                settings = asdict(self.config.settings_of(name, row["problem"], candidate))
                tables.setdefault(name, {})[row["problem"]] = settings
        return tomli_w.dumps({"settings": tables})


def choose(candidates: pd.DataFrame, floor: float) -> Any:
    """The index of the best of some candidates, see `Tuning.tried`; `None` if none of them has a score."""
    scored = candidates.dropna(subset=["rewrite", "neighborhood"])
    if scored.empty:
        return None
    best = scored["neighborhood"].max()
    harmless = scored[scored["neighborhood"] >= (floor if best >= floor else best - 0.02)]
    ranked = harmless.assign(rewrite=harmless["rewrite"].clip(upper=TOP_REWRITE).round(3))
    return ranked.sort_values(["rewrite", "neighborhood"], ascending=False).index[0]


def write(tuning: Tuning, run: Run, floor: float) -> tuple[pd.DataFrame, list[Path]]:
    """Write `tried.csv` and `chosen.toml` into the run's folder; what was tried, and the files."""
    tried = tuning.tried(run, floor)
    files = {"tried.csv": tried.to_csv(index=False), "chosen.toml": tuning.chosen_toml(tried)}
    for name, text in files.items():
        write_atomic(run.path / name, text.encode())
    return tried, [run.path / name for name in files]
