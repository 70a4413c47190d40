"""What a site's output says about the target at its own position, read through the logit lens or its tuned form."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from loc_edit.facts.fact import Fact
from loc_edit.localization.hooks import site_name
from loc_edit.localization.question import Grids, Questions
from loc_edit.localization.translators import Translators, fitted_translators
from loc_edit.models.model import Hook
from loc_edit.names import WRITES


def logit_lens(questions: Questions) -> Grids:
    """How much more of the target can be read off the residual stream with the site's output in it, clean - corrupted.

    The residual stream after the cell's layer goes through the final norm and the unembedding, once as it is and once
    without the site's output.  The effect is the difference of the metric in the clean run, minus the mean difference
    in the corrupted runs.  A target of several tokens is read by its first.  The effects of a window's layers add up.

    Cost: the clean and the corrupted run, and 2 x L x T x (K + 1) positions unembedded, which is most of it.
    Source: nostalgebraist 2020; for what one output adds, Geva et al. 2022.
    """
    return _read(questions)


def tuned_lens(questions: Questions, facts: Sequence[Fact] = ()) -> Grids:
    """The logit lens with an affine translator after each layer, fitted to what the layers above it add.

    The translators are fitted on the prompts of a data set, in two halves of its subjects.  A fact is read through the
    translators of the half that does not have its subject.

    Cost: as `logit_lens`; and once for a model and a data set, a run of all prompts, and two fits.
    Source: Belrose et al. 2023 (arXiv 2303.08112), with two departures: the translators are fitted by least squares
    between residual streams, as in Yom Din et al. 2023 (arXiv 2303.09435), where Belrose et al. minimize the KL
    divergence of the tokens' distributions; and on prompts of facts, where they take texts like the model's own.

    Args:
        questions: the prompts and targets.
        facts: the data set.

    Raises:
        ValueError: the data set has fewer than two subjects.
    """
    subjects = sorted({fact.subject for fact in facts})
    if len(subjects) < 2:
        raise ValueError(f"tuned lens: expected facts= of at least 2 subjects to fit it on, got {len(subjects)}")
    first = set(subjects[::2])
    halves = [[fact for fact in facts if (fact.subject in first) == inside] for inside in (True, False)]
    return _read(questions, fitted_translators(questions.model, halves), first)


@torch.no_grad()
def _read(questions: Questions, translators: Sequence[Translators] = (), first: Collection[str] = ()) -> Grids:
    """The effects of both lenses; a fact whose subject is in `first` has the second translators, others the first."""
    if questions.site not in WRITES:
        raise ValueError(
            f"site {questions.site!r}: a lens reads what {' or '.join(WRITES)} adds to the residual stream"
        )
    facts, n_layers, streams, outputs = questions.facts, questions.model.cfg.n_layers, list[Tensor](), list[Tensor]()
    kept = (("resid_post", streams), (questions.site, outputs))
    hooks: list[Hook] = [
        (site_name(site, layer), lambda value, hook, values=values: values.append(value.clone()))
        for site, values in kept
        for layer in range(n_layers)
    ]
    noisy = questions.corrupted_base(hooks).fact
    number = torch.cat([torch.arange(len(facts), device=noisy.device), noisy])  # the clean rows come first
    effects = []
    for i, fact in enumerate(facts):
        rows, span = (number == i).nonzero()[:, 0], slice(fact.prompt.subject.start, len(fact.prompt))
        lens = translators[fact.prompt.subject_text in first] if translators else None
        by_layer = []
        for layer in range(n_layers):
            whole, output = streams[layer][rows, span], outputs[layer][rows, span]
            pair = torch.stack([whole, whole - output])
            metric = questions.scorer.first(
                (lens.translated(pair, layer) if lens else pair).flatten(0, -2),
                number.new_full((pair[..., 0].numel(),), i),
            )
            with_output, without = metric.double().view(pair.shape[:-1])
            added = with_output - without
            by_layer.append(added[0] - added[1:].mean(0))
        effects.append(pad(torch.stack(by_layer), (fact.prompt.subject.start, 0)).cpu())
    return [questions.by_window(effect) for effect in effects]
