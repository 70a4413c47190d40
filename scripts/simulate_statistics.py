"""Measure the statistics on data whose truth is known: coverage of every interval, false positives, power, verdicts.

python scripts/simulate_statistics.py               # continues where it stopped; a quarter of an hour
python scripts/simulate_statistics.py --data-sets 50 --out /tmp/quick

Each condition is a number of facts, relations or none, and an effect.  Its rows are appended to `rows.csv` in the
folder for later; the table and the figure for the docs are made of all rows that are there.

The synthetic rows have eight layers, tracing effects and scores shaped like the built-in model's (ROME, error
injection): the layers explain .85 of the variance, a part of the scores lies at the ceiling, profiles are smooth over
the layers, and facts of a relation resemble each other, in tracing (.19 of the variance) and in scores (.3).
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from scipy import stats

from loc_edit.analysis.regression.effect_sizes import common_slope, effect_sizes
from loc_edit.analysis.regression.profiles import Profiles, Resampling, Sums, explained
from loc_edit.analysis.regression.statistics import tests
from loc_edit.analysis.regression.verdict import QUESTIONS
from loc_edit.views.style import BLACK, BLUE, GRAY, GREEN, ORANGE, WINE, Figure, legend, panels, save, styled

DOCS = Path(__file__).parents[1] / "docs"
N_LAYERS = 8
TRACE = np.array([0.30, 0.41, 0.52, 0.53, 0.46, 0.38, 0.26, 0.13])
TRACE_SPREAD = np.array([0.21, 0.22, 0.22, 0.21, 0.20, 0.17, 0.14, 0.08])
SCORE = np.array([0.84, 0.87, 0.90, 0.92, 0.90, 0.86, 0.35, 0.10])
SCORE_SPREAD = 0.13
IN_RELATION = {"trace": 0.19, "score": 0.3}
"""The share of the variance, at a layer, that lies between relations."""
SLOPES = {"none": 0.0, "at the margin": 0.25, "medium": 0.5, "large": 1.5, "tied layers": 0.0}
"""Standard deviations of the score per standard deviation of the effect; the second puts the partial R^2 above .05, and
in the last all layers have the same mean score."""
TIED = 0.85
FACTS = (10, 20, 40, 100, 200)
RELATIONS = (0, 10, 20)
MANY = 400_000
INTERVALS = ("added", "partial", "within", "within_r", "out_of_sample", "gain", "slope")
"""The intervals whose ends are checked."""
P = ("p", "p_clustered", "p_permutation", "p_within_relations", "p_within", "p_gain", "p_slope")


@dataclass(frozen=True)
class Condition:
    """How many facts, in how many relations (0: each is alone), and how strong the effect is."""

    n_facts: int
    n_relations: int
    effect: str

    @property
    def relation(self) -> np.ndarray:
        return np.arange(self.n_facts) % (self.n_relations or self.n_facts)


def conditions() -> list[Condition]:
    return [
        Condition(n_facts, n_relations, effect)
        for effect in SLOPES
        for n_facts in FACTS
        for n_relations in RELATIONS
        if n_facts > n_relations and (effect in ("none", "at the margin") or (n_facts > 10 and n_relations != 10))
    ]


def draw(rng: np.random.Generator, relation: np.ndarray, effect: str) -> Profiles:
    """The tracing effects and scores of facts, [fact, layer], each fact with its relation's number."""
    layers = np.arange(N_LAYERS)
    distance = np.abs(np.subtract.outer(layers, layers))

    def smooth(correlation: np.ndarray, in_relation: float) -> np.ndarray:
        root = np.linalg.cholesky(correlation).T
        of_relation = rng.normal(size=(relation.max() + 1, N_LAYERS)) @ root
        own = rng.normal(size=(len(relation), N_LAYERS)) @ root
        return np.sqrt(in_relation) * of_relation[relation] + np.sqrt(1 - in_relation) * own

    trace = smooth(0.9**distance, IN_RELATION["trace"])
    score = smooth(0.5 + 0.5 * 0.6**distance, IN_RELATION["score"])
    mean = TIED if effect == "tied layers" else SCORE
    score = np.clip(mean + SCORE_SPREAD * (score + SLOPES[effect] * trace), 0, 1)
    trace = np.maximum(0, TRACE + TRACE_SPREAD * trace)
    return Profiles(trace, score, relation, np.full(len(relation), np.nan), layers)


def truth(effect: str) -> dict[str, float]:
    """The population's values, from very many facts, each of its own relation; exactly 0 where there is no effect."""
    profiles = draw(np.random.default_rng(1), np.arange(MANY), effect)
    sums, within = Sums.of(profiles.sums().sum(0)), Sums.of(profiles.within_facts().sums().sum(0))
    r = float(within.pooled / np.sqrt(within.rest))
    at_peak = profiles.score[np.arange(MANY), profiles.trace.argmax(1)].mean()
    values = {
        "added": float(explained(profiles.sums().sum(0))[1]),
        "partial": float((sums.signal**2).sum() / sums.rest),
        "within": r**2,
        "within_r": r,
        "gain": float(at_peak - profiles.score.mean(0).max()),
        "slope": float(sums.pooled / sums.scale),
    }
    if SLOPES[effect] == 0:
        values |= dict.fromkeys(("added", "partial", "within", "within_r", "slope"), 0.0)
    return values | ({"gain": 0.0} if effect == "tied layers" else {})


def measure(condition: Condition, seed: int, draws: int) -> dict[str, float]:
    """Every interval and p of one data set."""
    rng = np.random.default_rng([seed, condition.n_facts, condition.n_relations])
    profiles = draw(rng, condition.relation, condition.effect)
    resampling = Resampling(draws, seed=seed)
    slope = common_slope(profiles)
    layer, added = explained(profiles.sums().sum(0))
    degrees = profiles.trace.size - 2 * N_LAYERS
    naive = stats.f.sf(added / N_LAYERS / ((1 - layer - added) / degrees), N_LAYERS, degrees)
    return (
        effect_sizes(profiles, resampling)
        | tests(profiles, resampling)
        | slope.columns("slope")
        | {"p_slope": slope.p, "p": float(naive), "seed": seed}
    )


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """The table of the docs: per condition and statistic the truth, the misses of each end, and the share of p < .05.

    Args:
        rows: the results of `measure` with the condition's fields.

    Returns:
        A row per condition and statistic: data_sets; of an interval truth, mean (of the estimates), below and above
        (percent of intervals whose upper or lower end misses the truth; 2.5 is nominal), no and yes (percent that lie
        below the margin, or above it, where the size has one); of a p-value percent below .05.
    """
    known = {effect: truth(effect) for effect in rows["effect"].unique()}
    margins = {question.size: question.margin for question in QUESTIONS.values()}
    table = []
    rows = rows.assign(effect=pd.Categorical(rows["effect"], list(SLOPES)))
    for (effect, n_facts, n_relations), cell in rows.groupby(["effect", "n_facts", "n_relations"], observed=True):
        condition = {"effect": effect, "facts": n_facts, "relations": n_relations, "data_sets": len(cell)}
        for name in INTERVALS:
            middle = cell[f"{name}_corrected" if name == "added" else name]
            low, high = cell[f"{name}_low"], cell[f"{name}_high"]
            true = known[effect].get(name, middle.mean())  # of cross-validation: its own mean with so many facts
            line = {"statistic": name, "truth": true, "mean": middle.mean()}
            line |= {"below": _percent(true > high), "above": _percent(true < low)}
            if name in margins:
                line |= {"no": _percent(high < margins[name]), "yes": _percent(low >= margins[name])}
            table.append(condition | line)
        for name in P:
            p = cell[name].dropna()
            table.append(condition | {"statistic": name, "p_below_05": _percent(p < 0.05) if len(p) else np.nan})
    return pd.DataFrame(table)


def _percent(true: pd.Series) -> float:
    return round(100 * float(true.mean()), 1)


def plot(table: pd.DataFrame) -> Figure:
    """How often each end misses, and how often p is below .05 without an effect, against the number of facts."""
    titles = {"added": "Added R\u00b2", "partial": "Partial R\u00b2", "within": "Correlation within facts"}
    titles |= {"gain": "Gain at the peak", "slope": "Slope"}
    ends = {"below": (BLUE, "o", "Upper end below the truth"), "above": (ORANGE, "s", "Lower end above it")}
    p_values = {"p": (BLACK, "^", "F-test"), "p_permutation": (GREEN, "D", "Permutation")}
    p_values |= {"p_clustered": (WINE, "v", "Clustered")}
    lines: list[tuple[int, Literal["-", "--"]]] = [(0, "-"), (RELATIONS[-1], "--")]
    with styled():
        figure, axes = panels(6, height=1.6, around=0.7, sharex=True)
        for ax, (name, title) in zip(axes, titles.items(), strict=False):
            cells = table[table["statistic"] == name]
            ax.axhspan(1.5, 3.5, color=GRAY, alpha=0.25, linewidth=0)
            for end, (color, marker, _) in ends.items():
                for n_relations, style in lines:
                    mean = cells[cells["relations"] == n_relations].groupby("facts")[end].agg(["mean", "min", "max"])
                    ax.plot(mean.index, mean["mean"], style, color=color, marker=marker)
                    ax.vlines(mean.index, mean["min"], mean["max"], color=color, alpha=0.4, linewidth=0.8)
            ax.set_title(title)
            ax.set_ylim(0, 8)
            ax.set_ylabel("Intervals that miss (%)")
        ax = axes[5]
        for name, (color, marker, _) in p_values.items():
            for n_relations, style in lines:
                chosen = (table["effect"] == "none") & (table["relations"] == n_relations)
                cells = table[chosen & (table["statistic"] == name)]
                ax.plot(cells["facts"], cells["p_below_05"], style, color=color, marker=marker)
        ax.axhline(5, color=GRAY, linewidth=0.6)
        ax.set_title("p < .05 without an effect")
        ax.set_ylabel("Data sets (%)")
        ax.set_xscale("log")
        ax.set_xticks(FACTS, [str(n) for n in FACTS])
        ax.xaxis.set_minor_locator(NullLocator())
        figure.supxlabel("Facts (log scale)")
        entries = [*ends.values(), *p_values.values()]
        handles = [Line2D([], [], color=color, marker=marker, label=label) for color, marker, label in entries]
        handles += [Line2D([], [], color=GRAY, linestyle=style, label=f"{n or 'No'} relations") for n, style in lines]
        legend(figure, axes, handles)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-sets", type=int, default=1000, help="per condition")
    parser.add_argument("--draws", type=int, default=199, help="resamples and permutations of each data set")
    parser.add_argument("--rows", type=Path, default=Path("runs/simulation/rows.csv"), help="kept for next time")
    parser.add_argument("--out", type=Path, default=DOCS, help="where the table and the figure go")
    parser.add_argument("--no-run", action="store_true", help="summarize what is there")
    args = parser.parse_args()
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    for condition in [] if args.no_run else conditions():
        there = pd.read_csv(args.rows) if args.rows.exists() else pd.DataFrame(columns=list(vars(condition)))
        same = (there[list(vars(condition))] == list(vars(condition).values())).all(axis=1)
        new = [vars(condition) | measure(condition, seed, args.draws) for seed in range(same.sum(), args.data_sets)]
        if new:
            pd.DataFrame(new).to_csv(args.rows, mode="a", header=not args.rows.exists(), index=False)
        print(condition, f"{len(new)} new data sets", flush=True)
    table = summarize(pd.read_csv(args.rows))
    save(plot(table), table, args.out, "simulation")


if __name__ == "__main__":
    main()
