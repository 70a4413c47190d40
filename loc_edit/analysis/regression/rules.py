"""Rules that choose one layer from a few facts: what the choice is worth on other facts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from loc_edit.analysis.regression.choices import peak_shares
from loc_edit.analysis.regression.profiles import sign_of
from loc_edit.analysis.tables.rows import RowsMissing, by_combination, in_paper_order

PILOT = "pilot"
"""The rule that edits the facts at every layer, and takes the layer of the best mean score."""


def votes(values: NDArray[np.float64], draws: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """How often each layer has the largest mean when the facts are drawn again; layers that tie share a draw.

    Args:
        values: [fact, layer], the larger the better.
        draws: resamples of facts.
        seed: of the resampling.
    """
    n = len(values)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws) / n
    return np.asarray(peak_shares(weights @ values).mean(0))


def layer_rules(
    values: Mapping[str, pd.DataFrame],
    edits: pd.DataFrame,
    outcome: str = "rewrite",
    *,
    facts: int = 10,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """What each rule's layer is worth: chosen from some facts, drawn by lot, and judged on all others.

    Args:
        values: by rule, a frame with columns fact_id, layer and value, the larger the better, and with `problem` if
            the values depend on it.
        edits: edit rows with scores at every layer; they also give the rule `pilot`.
        outcome: the score.
        facts: how many facts a rule sees.
        draws: how often they are drawn.
        seed: of the draws.

    Returns:
        A row per problem x method x window x rule: layer, the one most often chosen; share, how often; mean, the
        mean score of the other facts there; best, their mean score at the one layer that is best for them; any, their
        mean score over all layers; oracle, the mean score at each fact's best layer; worth, the share of the way from
        any to best that the rule goes: mean - any over best - any, each averaged over the draws; n_facts.

    Raises:
        RowsMissing: there are no more than `facts` facts with a score at every layer.
    """
    sign, table = sign_of(outcome), []
    for key, rows in by_combination(edits):
        scores = sign * rows.pivot_table(index="fact_id", columns="layer", values=outcome).dropna()
        if len(scores) <= facts:
            continue
        of_rule = {PILOT: scores} | {name: _wide(frame, key, scores) for name, frame in values.items()}
        for name, wide in of_rule.items():
            worth = _worth(wide.to_numpy(float), scores.to_numpy(float), scores.columns, facts, draws, seed)
            flipped = {column: sign * worth[column] for column in ("mean", "best", "any", "oracle")}
            table.append({**key, "rule": name, "outcome": outcome, **worth, **flipped, "n_facts": len(scores)})
    if not table:
        raise RowsMissing(f"expected more than {facts} facts with a {outcome} score at every layer")
    return in_paper_order(pd.DataFrame(table))


def _wide(frame: pd.DataFrame, key: Mapping[str, object], scores: pd.DataFrame) -> pd.DataFrame:
    """A rule's values for the same facts and layers as the scores; 0 where it has none."""
    if "problem" in frame:
        frame = frame[frame["problem"] == key.get("problem")]
    wide = frame.pivot_table(index="fact_id", columns="layer", values="value")
    return wide.reindex(index=scores.index, columns=scores.columns).fillna(0.0)


def _worth(
    values: NDArray[np.float64], scores: NDArray[np.float64], layers: pd.Index, facts: int, draws: int, seed: int
) -> dict[str, Any]:
    """The means over draws; see `layer_rules`."""
    rng, n = np.random.default_rng(seed), len(scores)
    chosen, means = np.zeros(len(layers)), np.zeros((draws, 3))
    for draw in range(draws):
        order = rng.permutation(n)
        seen, others = order[:facts], scores[order[facts:]]
        [share] = peak_shares(values[seen].mean(0, keepdims=True))
        chosen += share
        by_layer = others.mean(0)
        means[draw] = by_layer @ share, by_layer.max(), by_layer.mean()
    mean, best_layer, any_layer = means.mean(0)
    room = best_layer - any_layer
    return {
        "layer": int(layers[int(chosen.argmax())]),
        "share": float(chosen.max() / draws),
        "mean": float(mean),
        "best": float(best_layer),
        "any": float(any_layer),
        "oracle": float(scores.max(1).mean()),
        "worth": float((mean - any_layer) / room) if room > 0 else float("nan"),
    }
