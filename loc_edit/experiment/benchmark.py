"""The benchmark: does a localizer find planted facts, and does it inform editing?  How well does an editor do?

The grid of each model is fixed and ships with the package: facts, the scores of finished edits, a model with planted
facts, and the configuration that they were made with.  So a localizer needs only its own traces.  Half of the facts are
`public`, to develop on; the others are `held_out`, for the numbers that are reported.
"""

import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from loc_edit.analysis.regression.effect_sizes import within_facts
from loc_edit.analysis.regression.localizers import CONTROL, localizer_choices, localizer_matrix
from loc_edit.analysis.regression.planted import planted_accuracy
from loc_edit.analysis.regression.profiles import Profiles
from loc_edit.analysis.run import Run
from loc_edit.analysis.tables.rows import EffectDefinition, by_combination, join_by_localizer
from loc_edit.analysis.tables.summaries import mean_scores
from loc_edit.experiment.choosing import compare_rules
from loc_edit.experiment.config import BadConfig, ExperimentConfig
from loc_edit.experiment.experiment import Experiment
from loc_edit.experiment.planting import EDIT, planted_layers
from loc_edit.experiment.setup import Setup
from loc_edit.files import DATA, Origin, short_hash
from loc_edit.models.identity import versions
from loc_edit.names import LOCALIZERS, METHODS, parse_method

FOLDER = DATA / "benchmark"
GRID, EDITED, PLANTED, EDITS = "grid.toml", "facts.jsonl", "planted.jsonl", "edits.parquet"
"""The files of a model's grid: its configuration, facts that were edited, facts that were planted, scores of edits."""

SHOWN = ("rewrite", "paraphrase", "neighborhood", "essence")
"""The scores of the edits that ship, and of an editor's row."""

Split = Literal["public", "held_out"]


@dataclass(frozen=True)
class Grade:
    """What the benchmark says of a localizer or an editor.

    Attributes:
        summary: the row of the leaderboard.
        tables: the numbers that the row is made of, by name.
        about: the version of the benchmark, hashes of its files, and the software.
    """

    summary: dict[str, Any]
    tables: dict[str, pd.DataFrame] = field(repr=False)
    about: dict[str, Any] = field(repr=False)

    def submission(self) -> dict[str, Any]:
        """What somebody else can add to a leaderboard, as plain values."""
        tables = {name: table.to_dict("records") for name, table in self.tables.items()}
        return {"summary": self.summary, "about": self.about, "tables": tables}


class Benchmark:
    """The fixed grid of a model.

    Args:
        model: builtin, or another that the package has a grid of.
        split: the half of the facts that is graded.
        runs: the folder of the runs that compute traces and edits; they continue if they were stopped.
        workers: processes that compute; by default as many as suit the machine.

    Raises:
        BadConfig: there is no grid of this model.
    """

    def __init__(
        self,
        model: str = "builtin",
        split: Split = "public",
        runs: str | Path = "runs/benchmark",
        workers: int | None = None,
    ) -> None:
        self.folder, self.split, self.runs = FOLDER / model, split, Path(runs) / model
        self.workers = workers
        if not (self.folder / GRID).is_file():
            raise BadConfig(f"no benchmark of model {model!r}; there are {', '.join(benchmarks())}")
        self.grid = tomllib.loads((self.folder / GRID).read_text(encoding="utf-8"))

    @cached_property
    def edits(self) -> pd.DataFrame:
        """The scores of the finished edits of this half's facts: a row per fact, problem, method and layer."""
        rows = pd.read_parquet(self.folder / EDITS)
        return rows[rows["fact_id"].map(self._has)].assign(status="done")

    def _has(self, fact_id: int) -> bool:
        return (int(short_hash(str(fact_id)), 16) % 2 == 0) == (self.split == "public")

    def _run(self, name: str, **changes: Any) -> Run:
        """A run on this model with the grid's configuration, and some changes."""
        values = {**self.grid["config"], "facts": "all", **changes}
        experiment = Experiment(ExperimentConfig.from_values(values, name))
        return experiment.run(self.runs / name, workers=self.workers or experiment.default_workers())

    def localizer(self, name: str, *, draws: int = 2000) -> Grade:
        """Grade a localizer: does it find what was planted, and does it inform editing?

        Args:
            name: a localizer of the package or of a plug-in.
            draws: resamples and permutations.
        """
        planted, n_planted = self._planted(name)
        both = tuple(dict.fromkeys((name, CONTROL)))
        run = self._run("edited", data=str(self.folder / EDITED), localizers=both, problems=())
        frames = join_by_localizer(self.edits, run.traces, EffectDefinition(self.grid["config"]["windows"][0]))
        matrix, choices = localizer_matrix(frames, draws=draws), localizer_choices(frames, draws=draws)
        within = pd.DataFrame(
            {**key, "localizer": name, "within_r": within_facts(Profiles.of(rows))[1].middle}
            for key, rows in by_combination(frames[name])
        )
        tables = {"planted": planted, "matrix": matrix, "choices": choices, "within": within}
        tables = {key: table[table["localizer"] == name] for key, table in tables.items()}
        summary = {"localizer": name, **self._place, "n_planted": n_planted, **_summary(tables)}
        return Grade({**summary, **_content(LOCALIZERS[name].origin)}, tables, self.about)

    def _planted(self, name: str) -> tuple[pd.DataFrame, int]:
        """How often a localizer peaks at the layer that learned a fact."""
        edit = str(self.folder / EDIT)
        layers = {int(fact): own for fact, own in (planted_layers(edit) or {}).items() if self._has(int(fact))}
        changes = {"localizers": (name,), "windows": (self.grid["planted_window"],), "problems": ()}
        run = self._run("planted", data=str(self.folder / PLANTED), edit=edit, **changes)
        return planted_accuracy(run.traces, layers), len(layers)

    def editor(self, name: str, *, facts: int = 40) -> Grade:
        """Grade an editor: its scores at its best layer, beside the package's editors on the same facts.

        Args:
            name: a method of the package or of a plug-in; `memit-3` names a window.
            facts: how many facts it edits, of both halves; this half is graded.
        """
        problems = tuple(self.grid["editor_problems"])
        changes = {"data": str(self.folder / EDITED), "facts": facts, "methods": (name,), "problems": problems}
        method, window = parse_method(name)
        rows = self._run("editors", localizers=(), **changes).edits
        rows = rows[rows["fact_id"].map(self._has) & (rows["method"] == method)]
        others = self.edits[self.edits["fact_id"].isin(rows["fact_id"]) & self.edits["problem"].isin(problems)]
        others = others[(others["method"] != method) | (others["window"] != window)]
        means = mean_scores(pd.concat([others, rows], ignore_index=True))
        best = _best_layers(means)
        own = best[(best["method"] == method) & (best["window"] == window)].to_dict("records")
        scores = {f"{row['problem']}_{score}": row[score] for row in own for score in ("layer", *SHOWN)}
        summary = {"editor": name, **self._place, "n_facts": rows["fact_id"].nunique(), **scores}
        summary["seconds_per_edit"] = rows["seconds"].median()
        return Grade(
            {**summary, **_content(METHODS[method].origin)}, {"best_layers": best, "scores": means}, self.about
        )

    def rules(self) -> pd.DataFrame:
        """What the layer is worth that each rule chooses from ten facts of this half: see `compare_rules`."""
        config = {"data": str(self.folder / EDITED), "localizers": "all", "problems": ()}
        traces, problems = self._run("edited", **config).traces, list(self.edits["problem"].unique())
        setup = Setup(ExperimentConfig.from_values({**self.grid["config"], **config, "problems": problems}))
        return compare_rules(setup, traces, self.edits, window=self.grid["config"]["windows"][0])

    @property
    def _place(self) -> dict[str, Any]:
        return {"model": self.folder.name, "split": self.split, "benchmark": self.grid["version"]}

    @property
    def about(self) -> dict[str, Any]:
        """The version of the benchmark, hashes of its files, and the software."""
        files = sorted(path for path in self.folder.iterdir() if path.is_file())
        return {**self._place, "files": {path.name: short_hash(path.read_bytes()) for path in files}, **versions()}


def benchmarks() -> list[str]:
    """The models that the package has a grid of."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{GRID}"))


def _summary(tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """The numbers of the leaderboard: means over the pairs of problem and method, and counts of intervals above 0."""
    every = tables["planted"].set_index("group").loc["all"]
    matrix, choices = tables["matrix"], tables["choices"].set_index("choice")
    peak = choices.loc[["peak"]]
    return {
        "planted": every["found"],
        "planted_low": every["low"],
        "planted_high": every["high"],
        "chance": every["chance"],
        "n_facts": int(matrix["n_facts"].max()),
        "pairs": len(matrix),
        "added": matrix["added_corrected"].mean(),
        "partial": matrix["partial"].mean(),
        "pairs_beyond_controls": int((matrix["beyond_controls_low"] > 0).sum()),
        "within_r": tables["within"]["within_r"].mean(),
        "gain": peak["difference"].mean(),
        "pairs_gaining": int((peak["difference_low"] > 0).sum()),
        "gain_of_any_layer": choices.loc[["any layer"], "difference"].mean(),
        "gain_of_oracle": choices.loc[["oracle"], "difference"].mean(),
    }


def _best_layers(means: pd.DataFrame) -> pd.DataFrame:
    """For each problem and method the layer of the best mean rewrite score, with its scores."""
    keys = ["problem", "method", "window"]
    wide = means.pivot_table(index=[*keys, "layer"], columns="outcome", values="mean", observed=True).reset_index()
    best = wide.loc[wide.groupby(keys)["rewrite"].idxmax()]
    return best.sort_values(["problem", "rewrite"], ascending=[True, False], ignore_index=True)


def _content(origin: Origin | None) -> dict[str, str]:
    return {"file": Path(origin.name).name, "content": origin.content} if origin else {}
