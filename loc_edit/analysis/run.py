"""Opens a run folder for readers: its rows as frames, and every edit beside its fact's tracing effect."""

from html import escape
from pathlib import Path

import pandas as pd

from loc_edit.analysis.tables.rows import EffectDefinition, join, without_controls
from loc_edit.arguments import checked
from loc_edit.contract import describe_recorded
from loc_edit.effects import Denominator, Regressor
from loc_edit.files import StoreError
from loc_edit.names import TRACING, method_label, problem_label
from loc_edit.store.rows import Kind
from loc_edit.store.run import RunFolder
from loc_edit.views.table import html_table


class Run(RunFolder):
    """A run: `traces` and `edits` as frames, and each edit beside its fact's tracing effect.

    Made by `load_run`.
    """

    def frame(
        self,
        window: int | None = None,
        *,
        localizer: str = TRACING,
        site: str = "mlp_out",
        regressor: Regressor = "max",
        denominator: Denominator = "clean",
    ) -> pd.DataFrame:
        """The edit rows, each with the effect that one localizer finds for its fact at its layer.

        For the arguments see `EffectDefinition`, for the errors `join`, both in `analysis.tables.rows`.
        """
        return join(self.edits, self.traces, EffectDefinition(window, site, regressor, denominator, localizer))

    def counts(self) -> dict[str, int]:
        """How many edit rows of the present configuration have each status, controls not counted."""
        rows = without_controls(self.read("edits", ["status", "method"]))
        return {str(status): int(n) for status, n in rows["status"].value_counts().items()}

    def __repr__(self) -> str:
        try:
            lines = [self._summary("traces"), self._summary("edits")]
        except (ValueError, StoreError) as error:
            lines = [f"cannot be read: {error}"]
        if self.damaged:
            lines.append(f"{len(self.damaged)} damaged shard(s) left out")
        return "\n  ".join([f"Run {self.path}", *lines])

    def _repr_html_(self) -> str:
        text = f"<pre>{escape(repr(self))}</pre>"
        try:
            rows = without_controls(self.read("edits", ["problem", "method", "window", "layer", "rewrite"]))
        except (ValueError, StoreError):
            rows = pd.DataFrame()
        if rows.empty:
            return text
        means = rows.pivot_table("rewrite", ["problem", "method", "window"], "layer", sort=False)
        names = [f"{problem_label(problem)}, {method_label(method, window)}" for problem, method, window in means.index]
        lines = [(name, *values) for name, values in zip(names, means.to_numpy().tolist(), strict=True)]
        header = ("mean rewrite score by layer", *map(str, means.columns))
        return text + html_table(lines, header=header)

    def _summary(self, kind: Kind) -> str:
        shards = self.shards(kind)
        text = f"{kind + ':':8}{sum(shard.n_rows for shard in shards):,} rows in {len(shards):,} shards"
        if kind == "edits" and (counts := self.counts()):
            text += f" ({', '.join(f'{n:,} {status}' for status, n in counts.items())})"
        return text


@checked
def load_run(path: str | Path) -> Run:
    """Opens a run folder for reading, also while it is being written.

    Raises:
        BadRun: there is no such folder, it holds no run, or this version cannot read it.
    """
    run = Run.open(path)
    describe_recorded(run.config.get("plugins", {}))
    return run
