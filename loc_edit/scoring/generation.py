"""What a model writes after an edit: greedy continuations, judged by the target in them, and how fluent they are.

The other scores are probabilities of a target that the model is given.  A user sees what the model writes, where one
wrong word leads to the next (Yang et al. 2025, arXiv 2502.11177).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2, nan
from statistics import fmean

import torch
from jaxtyping import Int
from torch import Tensor

from loc_edit.editing.problems import EditRequest
from loc_edit.facts.fact import Fact
from loc_edit.models.decoding import sample_tokens
from loc_edit.models.model import Model, tokenizer
from loc_edit.prompts.batches import make_batch, run, target_log_probs
from loc_edit.prompts.encoding import Prompt, encode_text
from loc_edit.scoring.contract import scorer

LENGTH = 20
"""How many tokens are written after each prompt."""
NGRAMS = {2: 2 / 3, 3: 4 / 3}
"""The weights of the entropies of n-grams in their mean (Meng et al. 2022a, section 3.4)."""


@dataclass(frozen=True)
class Written:
    """What a model writes after a prompt.

    Attributes:
        prompt: the prompt.
        tokens: the tokens that follow.
        text: the same in words.
    """

    prompt: Prompt
    tokens: Int[Tensor, " _"]
    text: str

    def begins_with(self, target: str) -> bool:
        """Whether the text begins with the target, as a whole word, whatever the case."""
        return re.match(rf"\W*{re.escape(target.strip())}(?!\w)", self.text, re.IGNORECASE) is not None

    def has(self, target: str) -> bool:
        """Whether the target stands anywhere in the text, as a whole word, whatever the case."""
        return re.search(rf"(?<!\w){re.escape(target.strip())}(?!\w)", self.text, re.IGNORECASE) is not None


Texts = Mapping[str, Sequence[Written]]
"""What a model writes, by the kind of the prompt: rewrite, paraphrase, neighborhood, open."""


def compare(before: Texts, after: Texts, model: Model, request: EditRequest) -> dict[str, float]:
    """The scores of what the unedited and the edited model write.

    Where an edit lowers the probability of its target, the target is not to be written.

    Args:
        before: of the unedited model.
        after: of the edited model.
        model: the unedited model, which judges how surprising the texts are.
        request: gives the target.
    """
    target, wanted = request.target, request.objective == "raise"

    def begins(kind: str) -> float:
        return _mean([text.begins_with(target) == wanted for text in after[kind]])

    def has(kind: str) -> float:
        return _mean([text.has(target) == wanted for text in after[kind]])

    pairs = zip(before["neighborhood"], after["neighborhood"], strict=True)
    about = [[text for kind in ("rewrite", "paraphrase", "open") for text in texts[kind]] for texts in (before, after)]
    entropies = [fmean(entropy(text.tokens.tolist()) for text in texts) for texts in about]
    losses = [_loss(model, texts) for texts in about]
    return {
        "generation_rewrite": begins("rewrite"),
        "generation_paraphrase": begins("paraphrase"),
        "generation_neighborhood": _mean([old.begins_with(target) == new.begins_with(target) for old, new in pairs]),
        "generation_anywhere": has("rewrite"),
        "generation_paraphrase_anywhere": has("paraphrase"),
        "generation_open": has("open"),
        "generation_entropy": entropies[1] - entropies[0],
        "generation_surprise": losses[1] - losses[0],
    }


@scorer("generation", compare=compare)
def generation(model: Model, fact: Fact) -> Texts:
    """What the model writes after the edit prompt, the paraphrases, the neighbors' prompts and the subject alone.

    The likeliest token follows each time; no subject is noised.
    """
    texts = {
        "rewrite": [fact.prompt],
        "paraphrase": list(fact.paraphrases),
        "neighborhood": list(fact.neighbors),
        "open": [fact.subject],
    }
    prompts = [encode_text(model, text, fact_id=fact.fact_id) for of_kind in texts.values() for text in of_kind]
    greedy = [torch.zeros(min(LENGTH, model.cfg.n_ctx - len(prompt))) for prompt in prompts]
    rows = sample_tokens(model, [prompt.tokens for prompt in prompts], greedy, top_k=1)
    written = iter(
        Written(
            prompt, row[len(prompt) :], tokenizer(model).decode(row[len(prompt) :].tolist(), skip_special_tokens=True)
        )
        for prompt, row in zip(prompts, rows, strict=True)
    )
    return {kind: [next(written) for _ in of_kind] for kind, of_kind in texts.items()}


def entropy(tokens: Sequence[int]) -> float:
    """The weighted mean of the entropies of a text's 2- and 3-grams, in bits: low where it repeats itself.

    Source: Meng et al. 2022a, section 3.4 (there "fluency").
    """
    return fmean(
        weight * _entropy(list(zip(*(tokens[i:] for i in range(n)), strict=False))) for n, weight in NGRAMS.items()
    )


def _entropy(items: Sequence[tuple[int, ...]]) -> float:
    shares = [count / len(items) for count in Counter(items).values()]
    return -sum(share * log2(share) for share in shares)


@torch.inference_mode()
def _loss(model: Model, texts: Sequence[Written]) -> float:
    """The mean over the texts of the model's loss per token."""
    texts = [text for text in texts if len(text.tokens)]
    if not texts:
        return nan
    batch = make_batch(model, [text.prompt for text in texts], [text.tokens for text in texts])
    log_probs = target_log_probs(model, batch, batch.answers(run(model, batch)))
    return -fmean((log_probs.sum(1) / torch.tensor([len(text.tokens) for text in texts]).to(log_probs)).tolist())


def _mean(judged: Sequence[bool]) -> float:
    return fmean(judged) if judged else nan
