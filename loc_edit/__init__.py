"""Does the place where a fact seems to be stored tell us where to edit it?

Causal tracing, model editing (ROME, MEMIT, constrained fine-tuning) and their correlation, on TransformerLens
models.  Public names are loaded when first used, so that `import loc_edit` is quick and reading a finished run
needs no torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("loc-edit")

_ROOMS = {
    "loc_edit.facts": ["BadFact", "BadRecord", "Fact", "load_facts", "save_facts"],
    "loc_edit.download": ["DownloadFailed", "fetch"],
    "loc_edit.known": ["Answer", "answers", "known_facts"],
    "loc_edit.models": ["BadModel", "fingerprint", "load_model"],
    "loc_edit.prompts": ["BadPrompt", "Prompt", "SubjectNotFound", "encode", "target_tokens"],
    "loc_edit.noise": ["noise_scale", "subject_noise"],
    "loc_edit.tracing": ["Trace", "corruption_hooks", "restoration_hooks", "trace", "trace_many", "window_layers"],
    "loc_edit.localizers": ["LOCALIZERS", "localize"],
    "loc_edit.problems": ["PROBLEMS", "EditRequest", "NotEligible", "pose"],
    "loc_edit.keys": ["BadKeyStats", "KeyStats", "key_stats"],
    "loc_edit.editing.update": ["Edit", "EditMismatch", "WeightUpdate"],
    "loc_edit.editing.stack": ["EditStack"],
    "loc_edit.editing.value": ["EditFailed"],
    "loc_edit.editing.rome": ["rome"],
    "loc_edit.editing.r_rome": ["r_rome"],
    "loc_edit.editing.emmet": ["emmet", "emmet_joint"],
    "loc_edit.editing.memit": ["memit", "memit_joint"],
    "loc_edit.editing.alphaedit": ["alphaedit"],
    "loc_edit.editing.finetune": ["finetune"],
    "loc_edit.exporting": ["export"],
    "loc_edit.settings": [
        "AlphaEditSettings",
        "DecayFinetuneSettings",
        "EmmetSettings",
        "FinetuneSettings",
        "FreeFinetuneSettings",
        "MemitSettings",
        "RRomeSettings",
        "RomeSettings",
    ],
    "loc_edit.sampling": ["sample_contexts"],
    "loc_edit.scores": ["EditScore", "score"],
    "loc_edit.config": ["ExperimentConfig"],
    "loc_edit.experiment": ["Experiment"],
    "loc_edit.analysis": ["analyze"],
    "loc_edit.store": ["Run", "load_run"],
    "loc_edit.telling": ["ProgressLines"],
    "loc_edit.report": ["write_report"],
    "loc_edit.tables": ["layer_correlations"],
    "loc_edit.regress": [
        "Fit",
        "fit",
        "fits",
        "layer_choices",
        "localization_informs_editing",
        "localizer_choices",
        "localizer_matrix",
        "statistics",
    ],
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Load a public name's room when the name is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'loc_edit' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
