"""All scores of one edit of one fact."""

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from loc_edit.arguments import checked
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.update import Edit
from loc_edit.facts.fact import Fact
from loc_edit.models.checks import warn_of_hooks
from loc_edit.models.model import Model
from loc_edit.prompts.sampling import sample_essences
from loc_edit.scoring.contract import gets, measure, with_others
from loc_edit.scoring.measuring import Meter
from loc_edit.scoring.probes import make_probes
from loc_edit.scoring.registry import SCORERS
from loc_edit.scoring.scores import EditScore, compare


@checked
def score(
    model: Model,
    fact: Fact,
    request: EditRequest,
    edit: Edit | None = None,
    *,
    essence: bool = True,
    scores: Sequence[str] = (),
    noise: Float[Tensor, "sample subject d_model"] | None = None,
    facts: Sequence[Fact] = (),
) -> EditScore:
    """All scores of one edit of one fact.

    Args:
        model: the unedited model; the edit is applied to its activations, no weight is written (but for `scores`, and
            then taken back).
        fact: gives paraphrases and neighbors.
        request: gives the target, the objective and, for a noised subject, the noise.
        edit: from `rome`, `memit` or another editor; `None` measures the unedited model against itself.
        essence: whether to sample and measure essence texts.
        scores: further scores, as in a run: `generation`, `survival`, `ripple`, `formats`, `relearning`, and the scores
            of plug-ins.
        noise: the fact's subject noise, for scores that need it.
        facts: the whole data set, for scores that look at the other facts: `ripple`, `formats` and `relearning` do.

    Raises:
        ValueError: there is no such further score here (`movement` needs a run), or it needs `facts`.
    """
    if unknown := [name for name in scores if name not in SCORERS]:
        raise ValueError(f"score {unknown[0]!r}: expected one of {', '.join(SCORERS)}; others need a run (--scores)")
    if request.fact_id != fact.fact_id:
        raise ValueError(f"score: expected the request of fact {fact.fact_id}, got that of fact {request.fact_id}")
    if not facts and (needing := [name for name in scores if gets(name, "facts")]):
        raise ValueError(f"score {needing[0]!r} looks at the other facts: expected facts=, the whole data set")
    warn_of_hooks(model)
    texts = sample_essences(model, [fact.subject], [fact.fact_id], seed=request.seed)[0] if essence else []
    probes = make_probes(model, fact, request, texts)
    meter = Meter(model, [probes])
    [before], [after] = meter.before, meter.measure([edit])
    scored = compare(before, after, request.objective)
    others = {name: measure(name, model, fact, request, noise=noise, facts=facts) for name in scores}
    scored = with_others(scored, others, model, fact, request, edit, noise=noise, facts=facts)
    return replace(scored, fact=fact, request=request, edit=edit)
