"""Does the place where a fact seems to be stored tell us where to edit it?

Causal Tracing, model editing (ROME, MEMIT, constrained fine-tuning) and their correlation, on TransformerLens
models.  Public names are loaded when first used, so that `import loc_edit` is quick and reading a finished run
needs no torch.
"""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__: str
__all__: list[str]

if TYPE_CHECKING:  # for editors and type checkers; `_homes` reads the same lines when the package runs
    from loc_edit.analysis.analyze import analyze as analyze
    from loc_edit.analysis.regression.choices import layer_choices as layer_choices
    from loc_edit.analysis.regression.localizers import (
        localizer_choices as localizer_choices,
        localizer_matrix as localizer_matrix,
    )
    from loc_edit.analysis.regression.ols import Fit as Fit, fit as fit, fits as fits
    from loc_edit.analysis.regression.planted import (
        planted_accuracy as planted_accuracy,
        planted_edits as planted_edits,
        planted_gain as planted_gain,
        planted_in as planted_in,
    )
    from loc_edit.analysis.regression.pooling import pool as pool
    from loc_edit.analysis.regression.rules import layer_rules as layer_rules
    from loc_edit.analysis.regression.statistics import statistics as statistics
    from loc_edit.analysis.regression.verdict import localization_informs_editing as localization_informs_editing
    from loc_edit.analysis.run import Run as Run, load_run as load_run
    from loc_edit.analysis.tables.rows import RowsMissing as RowsMissing
    from loc_edit.analysis.tables.summaries import layer_correlations as layer_correlations
    from loc_edit.contract import BadPlugin as BadPlugin
    from loc_edit.editing.alphaedit import alphaedit as alphaedit
    from loc_edit.editing.contract import editor as editor
    from loc_edit.editing.emmet import emmet as emmet, emmet_joint as emmet_joint
    from loc_edit.editing.export import export as export
    from loc_edit.editing.finetune import finetune as finetune
    from loc_edit.editing.gradients import gradient_gains as gradient_gains
    from loc_edit.editing.memit import edit_keys as edit_keys, memit as memit, memit_joint as memit_joint
    from loc_edit.editing.planting import PlantSettings as PlantSettings, plant as plant
    from loc_edit.editing.problems import (
        EditRequest as EditRequest,
        NotEligible as NotEligible,
        pose as pose,
        problem as problem,
    )
    from loc_edit.editing.r_rome import r_rome as r_rome
    from loc_edit.editing.rome import rome as rome
    from loc_edit.editing.settings import (
        AlphaEditSettings as AlphaEditSettings,
        DecayFinetuneSettings as DecayFinetuneSettings,
        EmmetSettings as EmmetSettings,
        FinetuneSettings as FinetuneSettings,
        FreeFinetuneSettings as FreeFinetuneSettings,
        MemitSettings as MemitSettings,
        RomeSettings as RomeSettings,
        RRomeSettings as RRomeSettings,
        tuned_settings as tuned_settings,
    )
    from loc_edit.editing.stack import EditStack as EditStack
    from loc_edit.editing.update import Edit as Edit, EditMismatch as EditMismatch, WeightUpdate as WeightUpdate
    from loc_edit.editing.value import EditFailed as EditFailed
    from loc_edit.events import (
        Event as Event,
        ProgressBars as ProgressBars,
        ProgressLines as ProgressLines,
        listening as listening,
    )
    from loc_edit.experiment.benchmark import Benchmark as Benchmark, Grade as Grade
    from loc_edit.experiment.choosing import LayerChoice as LayerChoice, choose_layer as choose_layer
    from loc_edit.experiment.config import BadConfig as BadConfig, ExperimentConfig as ExperimentConfig
    from loc_edit.experiment.experiment import Experiment as Experiment
    from loc_edit.experiment.verifying import Finding as Finding, verify as verify
    from loc_edit.facts.download import DownloadFailed as DownloadFailed, fetch as fetch
    from loc_edit.facts.fact import BadFact as BadFact, Fact as Fact
    from loc_edit.facts.formats import BadRecord as BadRecord
    from loc_edit.facts.loading import load_facts as load_facts, save_facts as save_facts
    from loc_edit.facts.sampling import sample_by_relation as sample_by_relation
    from loc_edit.keys.compute import key_stats as key_stats
    from loc_edit.keys.moments import BadKeyStats as BadKeyStats, KeyStats as KeyStats
    from loc_edit.localization.contract import localizer as localizer
    from loc_edit.localization.hooks import (
        corruption_hooks as corruption_hooks,
        restoration_hooks as restoration_hooks,
        window_layers as window_layers,
    )
    from loc_edit.localization.question import Question as Question
    from loc_edit.localization.registry import localize as localize, localize_many as localize_many
    from loc_edit.localization.trace import Trace as Trace
    from loc_edit.localization.tracing import trace as trace, trace_many as trace_many
    from loc_edit.models.checks import BadModel as BadModel, ModelChanged as ModelChanged
    from loc_edit.models.identity import fingerprint as fingerprint
    from loc_edit.models.loading import load_model as load_model
    from loc_edit.names import LOCALIZERS as LOCALIZERS, METHODS as METHODS, PROBLEMS as PROBLEMS, SCORES as SCORES
    from loc_edit.prompts.encoding import (
        BadPrompt as BadPrompt,
        Prompt as Prompt,
        SubjectNotFound as SubjectNotFound,
        encode as encode,
        target_tokens as target_tokens,
    )
    from loc_edit.prompts.noise import noise_scale as noise_scale, subject_noise as subject_noise
    from loc_edit.prompts.recall import Answer as Answer, answers as answers, known_facts as known_facts
    from loc_edit.prompts.sampling import sample_contexts as sample_contexts
    from loc_edit.report.write import write_report as write_report
    from loc_edit.scoring.contract import scorer as scorer
    from loc_edit.scoring.score import score as score
    from loc_edit.scoring.scores import EditScore as EditScore


@cache
def _homes() -> dict[str, str]:
    """The module of every public name, from the imports above."""
    import ast
    from pathlib import Path

    return {
        alias.name: node.module or ""
        for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loc_edit.")
        for alias in node.names
    }


if not TYPE_CHECKING:  # for a type checker, a name that is not above does not exist

    def __getattr__(name: str) -> Any:
        """Load the module of a public name when the name is first used."""
        if name == "__version__":
            from importlib.metadata import version

            value = version("loc-edit")
        elif name == "__all__":
            value = sorted(_homes())
        elif name in _homes():
            value = getattr(import_module(_homes()[name]), name)
        else:
            raise AttributeError(f"module 'loc_edit' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*globals(), *_homes()]
