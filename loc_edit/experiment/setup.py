"""What all cells and batches of an experiment share: model, data set, noise, context texts and key statistics.

Everything is made when it is first asked for, so that looking at a configuration costs nothing.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from loc_edit.editing.problems import EditRequest, pose
from loc_edit.editing.update import Edit
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.experiment.texts import Contexts
from loc_edit.facts.fact import BadFact, Fact
from loc_edit.facts.loading import load_facts
from loc_edit.files import Origin, short_hash
from loc_edit.keys.compute import key_stats
from loc_edit.keys.corpora import corpus_content
from loc_edit.keys.moments import KeyStats
from loc_edit.localization.hooks import window_layers
from loc_edit.models.checks import check_editable, check_layers
from loc_edit.models.identity import fingerprint
from loc_edit.models.loading import load_model
from loc_edit.models.model import Model
from loc_edit.names import LOCALIZERS, METHODS, PROBLEMS, SCORES, Method, parse_method, scores_of
from loc_edit.prompts.noise import Corruption, corruption
from loc_edit.prompts.sampling import sample_contexts
from loc_edit.scoring.contract import gets
from loc_edit.store.settings import cell_key

SENT = ("config", "corruption", "references", "layers", "contexts")
"""What another process is given; the rest it makes for itself."""


def plugin(origin: Origin | None) -> dict[str, str]:
    """What the identity of a cell holds of a plug-in: a hash of its whole file or package."""
    return {"plugin": origin.content} if origin else {}


class Setup:
    """What all cells and batches of an experiment share.

    Args:
        config: the configuration.
        default_layers: number of layers -> the layers to edit if the configuration names none; all of them by default.
    """

    def __init__(self, config: ExperimentConfig, default_layers: Callable[[int], Sequence[int]] = range) -> None:
        self.config = config
        self._default_layers = default_layers

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to make the same setup; it loads the model for itself."""
        return {name: value for name, value in vars(self).items() if name in SENT}

    def with_contexts(self, contexts: Contexts | None) -> "Setup":
        """The same setup with these context texts, or with its own if there are none."""
        if contexts is None:
            return self
        return self._with(contexts=contexts, _names={})

    def with_stats(self, stats: KeyStats) -> "Setup":
        """The same setup with these key statistics."""
        return self._with(stats=stats)

    def with_data(self, facts: list[Fact], model: Model | None = None) -> "Setup":
        """The same setup with these facts as its data set, and with a model that is loaded already."""
        if model is not None:
            check_editable(model)
        return self._with(data=facts, _names={}, **({} if model is None else {"model": model}))

    def _with(self, **values: Any) -> "Setup":
        other = Setup(self.config)
        vars(other).update({**vars(self), **values})
        return other

    @cached_property
    def model(self) -> Model:
        """The model, checked to be one that can be edited, with the configuration's edit written into it."""
        model = load_model(self.config.model)
        check_editable(model)
        if self.config.edit:
            Edit.load(self.config.edit, model).write(model)
        return model

    @cached_property
    def data(self) -> list[Fact]:
        """The whole data set, in the order of its file."""
        config = self.config
        return load_facts(config.data, limit=config.data_limit, seed=config.seed, skip_invalid=config.skip_invalid)

    @cached_property
    def layers(self) -> list[int]:
        """The layers to edit."""
        n_layers = self.model.cfg.n_layers
        layers = list(self._default_layers(n_layers) if self.config.layers is None else self.config.layers)
        check_layers(self.model, layers)
        return layers

    @property
    def first_edited_layers(self) -> list[int]:
        """The lowest layer of each edit: scores start there."""
        return sorted({window[0] for window in self._edited_windows(self.config.methods)})

    def _edited_windows(self, methods: Sequence[str]) -> list[range]:
        sizes = {parse_method(name)[1] for name in methods}
        return [window_layers(layer, size, self.model.cfg.n_layers) for size in sizes for layer in self.layers]

    @cached_property
    def corruption(self) -> Corruption:
        """The subject noise; a rule that depends on subjects takes the subjects of the whole data set."""
        return corruption(self.model, self.config.noise, self.data)

    @cached_property
    def references(self) -> list[Fact]:
        """The facts that localizers get, or that their reference prompts are drawn from; none if none needs any.

        Raises:
            BadFact: the data set has only one subject.
        """
        known = [LOCALIZERS[name] for name in self.config.localizers]
        if not any(localizer.references for localizer in known):
            return self.data if any(localizer.facts for localizer in known) else []
        if len({fact.subject for fact in self.data}) < 2:
            raise BadFact(f"{self.config.data}: mean and resample ablation need facts with several subjects")
        return self.data

    @cached_property
    def contexts(self) -> Contexts:
        """The editors' context texts, sampled from the model."""
        styles: tuple[Literal["rome", "memit"], ...] = ("rome", "memit")
        return {style: sample_contexts(self.model, style, seed=self.config.seed) for style in styles}

    @cached_property
    def stats(self) -> KeyStats:
        """Second moments of the keys at every layer at which an editor needs them."""
        config = self.config
        return key_stats(
            self.model, self.layers_of_stats, config.corpus, tokens=config.corpus_tokens, ridge=config.ridge
        )

    @property
    def stats_name(self) -> str:
        """A name for what the key statistics are computed from."""
        return cell_key({"corpus": self.corpus_identity})

    def stats_checksum(self, layer: int, window: int) -> str:
        """A hash of the key statistics of `window` layers around one: which statistics an edit was made with."""
        layers = window_layers(layer, window, self.model.cfg.n_layers)
        return short_hash(" ".join(self.stats.checksum(layer) for layer in layers))

    @property
    def layers_of_stats(self) -> list[int]:
        """The layers at which an editor needs key statistics."""
        methods = [name for name in self.config.methods if METHODS[parse_method(name)[0]].stats]
        return sorted({layer for window in self._edited_windows(methods) for layer in window})

    def pose(self, fact: Fact, problem: str, noise: Float[Tensor, "sample subject d_model"] | None) -> EditRequest:
        """The request that a problem makes of a fact, with this experiment's noise and seed."""
        sigma, facts = self.corruption.sigma, self.data if PROBLEMS[problem].facts else ()
        return pose(fact, problem, self.model, noise=noise, noise_scale=sigma, seed=self.config.seed, facts=facts)

    @property
    def scored_with(self) -> Sequence[Fact]:
        """The facts that scores get: the whole data set, or none if none of them looks at it."""
        return self.data if any(gets(name, "facts") for name in self.config.scores) else ()

    # What the names of cells depend on

    def name_of(self, cell: Hashable, identity: Callable[[], dict[str, Any]]) -> str:
        """The name of a cell: a hash of the model, the seed and all else that its rows depend on but the fact."""
        if cell not in self._names:
            self._names[cell] = cell_key({"model": self._fingerprint, "seed": self.config.seed, **identity()})
        return self._names[cell]

    @cached_property
    def _names(self) -> dict[Hashable, str]:
        return {}

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.model)

    @property
    def noise_identity(self) -> dict[str, Any]:
        """What the subject noise depends on."""
        return {**self.corruption.identity, "samples": self.config.noise_samples}

    def score_identity(self, problem: str) -> dict[str, Any]:
        """What scores depend on for a problem: the noise and the data set too where it or a score looks at them."""
        known, scores = PROBLEMS[problem], self.config.scores
        noise = self.noise_identity if known.sees_noise or any(gets(name, "noise") for name in scores) else {}
        identity: dict[str, Any] = {**noise, "essence": self.config.essence}
        if known.origin:
            identity["problem_plugin"] = known.origin.content
        if known.facts or self.scored_with:
            identity["data"] = self.data_identity
        return identity | (
            {"scores": {name: plugin(SCORES[scores_of(name)[0]].origin) for name in scores}} if scores else {}
        )

    def texts_identity(self, method: Method) -> dict[str, Any]:
        """What a method takes from texts: its contexts, and the corpus behind the key statistics."""
        identity: dict[str, Any] = {"contexts": list(self.contexts.get(method.contexts or "", ()))}
        return identity | ({"corpus": self.corpus_identity} if method.stats else {})

    @property
    def corpus_identity(self) -> list[Any]:
        """What the key statistics depend on besides the model."""
        return [corpus_content(self.config.corpus), self.config.corpus_tokens, self.config.ridge]

    @cached_property
    def data_identity(self) -> str:
        """A hash of the whole data set."""
        return cell_key({"facts": [[fact.fact_id, fact.content] for fact in self.data]})

    @cached_property
    def reference_identity(self) -> str:
        """A hash of what reference prompts depend on."""
        return cell_key({"prompts": [[f.fact_id, f.relation, f.template, f.subject] for f in self.references]})
