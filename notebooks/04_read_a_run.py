# %% [markdown]
# # Read a run
#
# A run is a folder of rows.  This notebook makes a small one (20 facts, ROME at four layers: a minute), and then asks
# the question of the study: does the place where a fact seems to be stored tell us where to edit it?  Any run can be
# read in this way, also while it is at work, and without torch.

# %% Install the package where it is missing, as on Colab; where it is there, no network is needed
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("loc_edit") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "loc-edit"], check=True)

# %% A run; `loc-edit run` makes one on the command line
import loc_edit

config = loc_edit.ExperimentConfig(facts=20, layers=(1, 3, 5, 7), essence=False, workers=1)
loc_edit.Experiment(config).run("runs/notebook")
run = loc_edit.load_run("runs/notebook")
run

# %% Its rows: each edit beside its fact's tracing effect at the edited layer
frame = run.frame()
frame[["fact_id", "problem", "method", "layer", "trace", "rewrite", "paraphrase", "neighborhood"]].head()

# %% Within each layer: do the facts that tracing finds there take the edit better?
loc_edit.layer_correlations(frame)[["layer", "r", "low", "high", "p_holm", "n"]].round(2)

# %% How much of the rewrite score does the layer explain, and how much does the tracing effect add?
loc_edit.fit(frame, outcome="rewrite")

# %% The answer, in words, to three questions
loc_edit.localization_informs_editing(frame, draws=400)

# %% All tables and figures; this one has R² of the layer alone, and of layer and tracing effect together
from IPython.display import Image

loc_edit.analyze(run, draws=400)
Image("runs/notebook/figures/figure_6.png", width=500)

# %% One page for somebody else: the answer, tables, figures, and each fact with its trace and its edits
print(loc_edit.write_report(run))
