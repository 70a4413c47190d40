"""An edit on one screen: next tokens before and after, the probability on every prompt, the size of the update."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

TokenProbabilities = Sequence[tuple[str, float]]
"""Texts of next tokens with their probabilities, the likeliest first."""


@dataclass(frozen=True)
class EditView:
    """An edit before and after; a notebook shows it as HTML, `print` as text.

    Attributes:
        prompt: the edit prompt.
        target: the text whose probability the edit changes.
        objective: whether the edit raises or lowers that probability, `raise` or `lower`.
        before: the likeliest next tokens of the edit prompt without the edit; the subject is not noised.
        after: the likeliest next tokens with the edit.
        probabilities: `kind, prompt, before, after`: p(target) on each prompt.
        scores: the scores by name.
        norms: per edited layer, the Frobenius norm of the change of `W_out`, and its ratio to the norm of `W_out`.
    """

    prompt: str
    target: str
    objective: str
    before: TokenProbabilities
    after: TokenProbabilities
    probabilities: Sequence[tuple[str, str, float, float]]
    scores: Mapping[str, float]
    norms: Mapping[int, tuple[float, float]]

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt with p(target): `kind, prompt, before, after`."""
        return pd.DataFrame(list(self.probabilities), columns=["kind", "prompt", "before", "after"])

    def __str__(self) -> str:
        title = f"{self.prompt} -> {self.target} ({self.objective})"
        tokens = (
            f"next {when}: {spelled(next_tokens)}"
            for when, next_tokens in (("before", self.before), ("after", self.after))
        )
        scores = "  ".join(f"{name} {value:.3f}" for name, value in self.scores.items())
        norms = "  ".join(
            f"layer {layer}: |delta| {norm:.4g} ({share:.2%} of |W_out|)" for layer, (norm, share) in self.norms.items()
        )
        table = self.to_frame().to_string(index=False, float_format="{:.4f}".format)
        return "\n".join((title, *tokens, table, scores, norms))

    def _repr_html_(self) -> str:
        package = PackageLoader("loc_edit.views", "")
        environment = Environment(loader=package, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        return environment.get_template("edit.html.j2").render(view=self)


def spelled(tokens: TokenProbabilities) -> str:
    """Next tokens on one line: `'Paris' 0.812  'London' 0.033`."""
    return "  ".join(f"{text.strip()!r} {p:.3f}" for text, p in tokens)
