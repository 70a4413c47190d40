"""What an edit changes, on one screen: next tokens, probabilities prompt by prompt, the size of the update."""

from dataclasses import dataclass

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformer_lens import HookedTransformer

from loc_edit.editing.update import Edit
from loc_edit.facts import Fact
from loc_edit.known import NextTokens, next_tokens
from loc_edit.models import W_out
from loc_edit.problems import EditRequest
from loc_edit.scores import EditScore, score

OUTCOMES = ("rewrite", "paraphrase", "neighborhood", "overall")


@dataclass(frozen=True)
class EditView:
    """An edit before and after; a notebook shows it as HTML, `print` as text.

    Attributes:
        fact: the edited fact.
        request: what was asked of the edit.
        before: the likeliest next tokens of the edit prompt (its subject not noised).
        after: the same with the edit.
        score: scores and raw probabilities, essence texts left out.
        norms: per edited layer, the Frobenius norm of the change of `W_out`, and its share of that of `W_out`.
    """

    fact: Fact
    request: EditRequest
    before: NextTokens
    after: NextTokens
    score: EditScore
    norms: dict[int, tuple[float, float]]

    def to_frame(self) -> pd.DataFrame:
        """p(target) prompt by prompt: `kind, prompt, before, after`."""
        prompts = {
            "rewrite": (self.fact.prompt,),
            "paraphrase": self.fact.paraphrases,
            "neighborhood": self.fact.neighbors,
        }
        rows = [
            {"kind": kind, "prompt": text, "before": p, "after": q}
            for kind, texts in prompts.items()
            for text, p, q in zip(
                texts, *(_numbers(self.score, when, kind) for when in ("before", "after")), strict=True
            )
        ]
        return pd.DataFrame(rows, columns=["kind", "prompt", "before", "after"])

    @property
    def scores(self) -> dict[str, float]:
        """The scores by name."""
        return {name: getattr(self.score, name) for name in OUTCOMES}

    def __str__(self) -> str:
        about = f"{self.fact.prompt} -> {self.request.target} ({self.request.objective})"
        tokens = (f"next {when}: {_spelled(found)}" for when, found in (("before", self.before), ("after", self.after)))
        scores = "  ".join(f"{name} {value:.3f}" for name, value in self.scores.items())
        norms = "  ".join(
            f"layer {layer}: |delta| {norm:.4g} ({part:.2%} of |W_out|)" for layer, (norm, part) in self.norms.items()
        )
        table = self.to_frame().to_string(index=False, float_format="{:.4f}".format)
        return "\n".join((about, *tokens, table, scores, norms))

    def _repr_html_(self) -> str:
        package = PackageLoader("loc_edit.views", "")
        environment = Environment(loader=package, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        return environment.get_template("edit.html.j2").render(view=self, rows=self.to_frame().to_dict("records"))


def view_edit(model: HookedTransformer, fact: Fact, request: EditRequest, edit: Edit, *, n: int = 5) -> EditView:
    """What `edit` changes for `fact`.

    Args:
        model: the unedited model; the edit is applied and taken back.
        fact: gives paraphrases and neighbours.
        request: what was asked of the edit.
        edit: from `rome`, `memit` or `finetune`.
        n: how many next tokens.
    """
    before = next_tokens(model, request.prompt, n)
    with edit.applied(model):
        after = next_tokens(model, request.prompt, n)
    norms = {}
    for layer in edit.layers:
        norm = edit.delta(layer).double().norm().item()
        norms[layer] = (norm, norm / W_out(model, layer).double().norm().item())
    return EditView(fact, request, before, after, score(model, fact, request, edit, essence=False), norms)


def _numbers(found: EditScore, when: str, kind: str) -> tuple[float, ...]:
    value = getattr(getattr(found, when), kind)
    return (value,) if isinstance(value, float) else tuple(value)


def _spelled(tokens: NextTokens) -> str:
    return "  ".join(f"{text.strip()!r} {p:.3f}" for text, p in tokens)
