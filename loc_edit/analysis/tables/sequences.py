"""Tabulates edits in sequence: what is left of the edits, the neighbors and the model as the edits add up."""

import pandas as pd

from loc_edit.analysis.tables.rows import RowsMissing, in_paper_order
from loc_edit.names import WAYS

MEASURES = {
    "rewrite_last": "last edit",
    "rewrite_first": "first edit",
    "rewrite": "all edits so far",
    "paraphrase": "their paraphrases",
    "neighborhood": "neighbors",
    "perplexity_ratio": "perplexity / before",
    "norm": "|W| / before",
    "change": "|change of W| / |W|",
}
"""What is measured of a model with many edits, in the order of tables, with a short name."""


def sequences(rows: pd.DataFrame) -> pd.DataFrame:
    """The measures by problem, method, layer, way and number of edits, in the order of the paper.

    Args:
        rows: of `RunFolder.sequences`.

    Returns:
        `problem, method, window, way, layer, n_edits`, the `MEASURES`, `perplexity`, and `failed`: how many of the
        edits could not be made.  `perplexity_ratio` is the perplexity of held-out texts, 1 for the unedited model.

    Raises:
        RowsMissing: no edit was made.
    """
    edited = rows[rows["n_edits"] > 0]
    if edited.empty:
        raise RowsMissing("no edits in sequence")
    table = edited.assign(perplexity_ratio=edited["perplexity"] / edited["perplexity_before"])
    table = table.sort_values(["way", "n_edits"], key=lambda c: c.map(list(WAYS).index) if c.name == "way" else c)
    columns = ["problem", "method", "window", "way", "layer", "n_edits", *MEASURES, "perplexity", "failed"]
    return in_paper_order(table[columns])
