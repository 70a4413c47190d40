"""Localizers that replace a cell's output in the clean run."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.arguments import Samples, checked
from loc_edit.localization.hooks import site_name
from loc_edit.localization.question import Grids, Questions
from loc_edit.localization.sweep import Patch, Units
from loc_edit.models.model import Hook
from loc_edit.prompts.batches import make_batch, run
from loc_edit.prompts.encoding import Prompt
from loc_edit.prompts.randomness import generator


def zero_ablation(questions: Questions) -> Grids:
    """How much of the metric the clean run loses when a cell's output is 0: `p_clean - p_ablated`.

    Cost: layers x positions runs of one row, each from the first layer of its window on.
    """
    nothing = [torch.zeros_like(output[0, :1]) for output in questions.base.clean]
    return _ablated(questions, nothing, [torch.zeros(len(fact.prompt), 1).long() for fact in questions.facts])


def mean_ablation(questions: Questions) -> Grids:
    """How much the clean run loses when a cell's output is the mean output over the tokens of other prompts.

    The prompts are the `reference` of each fact, which never includes the fact's own prompt.

    Cost: as `zero_ablation`, and one run per reference prompt.  Source: Wang et al. 2023 (IOI).
    """
    pairs = [(prompt, pos, i) for i in range(len(questions.facts)) for prompt, pos in _places(questions, i)]
    means = _from_references(questions, pairs, len(questions.facts))
    sources = [torch.full((len(fact.prompt), 1), i) for i, fact in enumerate(questions.facts)]
    return _ablated(questions, means, sources)


@checked
def resample_ablation(questions: Questions, samples: Samples = 10, seed: int = 0) -> Grids:
    """How much the clean run loses when a cell's output comes from another prompt, at a position of the same kind.

    The kinds are: before the subject, inside it, its last token, after it, the prompt's last token.  Prompts and
    positions are drawn per (seed, fact) among each fact's `reference`, without the prompts of the fact itself.

    Args:
        questions: the prompts and targets.
        samples: the number of draws per cell, over which the loss is averaged.
        seed: of the draws.

    Cost: `samples` times that of `zero_ablation`, and one run per reference prompt.  Source: Chan et al. 2022.
    """
    pairs: list[tuple[Prompt, int, int]] = []
    sources = []
    for i, fact in enumerate(questions.facts):
        places = _places(questions, i)
        alike: dict[str, list[tuple[Prompt, int]]] = defaultdict(list)
        for prompt, pos in places:
            alike[kind(prompt, pos)].append((prompt, pos))
        draws = generator("resample", seed, fact.prompt.fact_id)
        sources.append(len(pairs) + torch.arange(samples * len(fact.prompt)).view(samples, -1).T)
        for _ in range(samples):
            for pos in range(len(fact.prompt)):
                options = alike.get(kind(fact.prompt, pos), places)
                place = options[int(torch.randint(len(options), (1,), generator=draws))]
                pairs.append((*place, len(pairs)))
    return _ablated(questions, _from_references(questions, pairs, len(pairs)), sources)


def kind(prompt: Prompt, pos: int) -> str:
    """What a position is: before, inside or last of the subject, after it, or the prompt's last."""
    if pos == len(prompt) - 1:
        return "last"
    if pos < prompt.subject.start:
        return "before"
    if pos < prompt.last_subject:
        return "inside"
    return "last subject" if pos == prompt.last_subject else "after"


def _places(questions: Questions, fact: int) -> list[tuple[Prompt, int]]:
    """The positions of a fact's reference prompts."""
    own = questions.facts[fact]
    others = [prompt for prompt in own.reference if prompt.fact_id != own.prompt.fact_id]
    if not others:
        raise ValueError(f"fact {own.prompt.fact_id}: ablation needs prompts of other facts (reference=)")
    return [(prompt, pos) for prompt in others for pos in range(len(prompt))]


@torch.no_grad()
def _from_references(
    questions: Questions, pairs: Sequence[tuple[Prompt, int, int]], n: int
) -> list[Float[Tensor, "mean ..."]]:
    """By layer, `n` means of the site's outputs at some positions of reference prompts, each of which runs once.

    Args:
        questions: the facts whose reference prompts these are.
        pairs: a prompt, a position in it, and the number of a mean in which the output there is counted.
        n: the number of means.
    """
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)  # facts of one relation share prompts
    for prompt, pos, mean in pairs:
        places[prompt.text].append((pos, mean))
    prompts = sorted({prompt.text: prompt for prompt, _, _ in pairs}.values(), key=len)
    means = [output.new_zeros(n, *output.shape[2:]) for output in questions.base.clean]
    names = [site_name(questions.site, layer) for layer in range(len(means))]

    def work(part: slice) -> None:
        outputs: list[Tensor] = []
        batch = make_batch(questions.model, prompts[part])
        triples = [(row, *place) for row, prompt in enumerate(prompts[part]) for place in places[prompt.text]]
        row, pos, mean = torch.tensor(triples, device=batch.tokens.device).T
        hooks: list[Hook] = [(name, lambda value, hook: outputs.append(value[row, pos])) for name in names]
        run(questions.model, batch, hooks=hooks)
        for total, output in zip(means, outputs, strict=True):
            total.index_add_(0, mean, output)

    questions.budget.spend(len(prompts), max(map(len, prompts)), work)
    count = torch.tensor([mean for _, _, mean in pairs]).bincount(minlength=n)
    return [total / count.to(total).view(-1, *[1] * (total.ndim - 1)) for total in means]


def _ablated(
    questions: Questions, outputs: Sequence[Float[Tensor, "source ..."]], sources: Sequence[Int[Tensor, "_ draw"]]
) -> Grids:
    """`p_clean - p` when a cell's output is replaced by outputs of its layer, averaged over draws.

    Args:
        questions: the prompts and targets.
        outputs: by layer, some outputs of the site.
        sources: for each fact, position and draw, the number of one of these outputs.
    """
    base, device = questions.base, questions.base.fact.device
    row = torch.cat([torch.full((source.numel(),), i) for i, source in enumerate(sources)]).to(device)
    pos = torch.cat([torch.arange(len(source)).repeat_interleave(source.shape[1]) for source in sources]).to(device)
    patch = Patch(questions.site, outputs, torch.cat([source.flatten() for source in sources]).to(device))
    units = Units(base, row, pos, start=torch.zeros_like(pos) if base.whole else pos, restored=patch)
    metrics = questions.measure(units, [source.shape[1] for source in sources])
    each = zip(questions.clean, metrics, strict=True)
    return [[clean.metric.item() - metric for metric in by_window] for clean, by_window in each]
