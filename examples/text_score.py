"""A score: how much an edit raises the perplexity of a text that has nothing to do with it.

loc-edit run --plugin examples/text_score.py --scores text
"""

import math

import loc_edit

TEXT = (
    "The weather was fine in the morning, and the children walked to school along the river. After lunch it began to "
    "rain, so the teacher read them a story about a ship that crossed the sea and came back with oranges and silk."
)


def ratio(before, after):
    """Perplexity after the edit over the perplexity before; 1 if nothing changes."""
    return math.exp(min(after - before, 700.0))


@loc_edit.scorer("text", low=0.0, better="low", compare=ratio)
def text(model, fact):
    """The perplexity of a text after the edit, in units of that before."""
    return model(model.to_tokens(TEXT), return_type="loss").item()
