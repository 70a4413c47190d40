# %% [markdown]
# # A localizer of your own
#
# A localizer is a function: a question in, a layer x position grid out.  This one asks how far the noise on the subject
# moves the output of each MLP.  Is it like Causal Tracing, and does it tell where to edit?  Two minutes on a laptop, no
# network.

# %% Install the package where it is missing, as on Colab; where it is there, no network is needed
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("loc_edit") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "loc-edit"], check=True)

# %% The localizer, registered by a decorator
import torch

import loc_edit


@loc_edit.localizer("output_change", cost="K + 1")
def output_change(question):
    """The lost probability, shared out in proportion to how far the noise moves the outputs of a window."""
    distances = torch.stack([change.norm(dim=-1).mean(0) for change in question.differences])
    moved = torch.stack([distances[list(layers)].sum(0) for layers in question.windows])
    moved = moved[:, : len(question.prompt)]  # without the positions of the target
    return moved / moved.max() * (question.p_clean - question.p_corrupted)


# %% One fact, beside Causal Tracing
model, facts = loc_edit.load_model("builtin"), loc_edit.load_facts("builtin")
prompt = loc_edit.encode(model, facts[1])
noise = loc_edit.subject_noise(model, prompt, scale="s3", facts=facts)
traced = loc_edit.trace(model, prompt, facts[1].target_true, noise=noise, window=1)
traced

# %% The new one
mine = loc_edit.localize(model, prompt, facts[1].target_true, noise=noise, localizer="output_change", window=1)
mine

# %% A small grid: 20 facts, three localizers, ROME at four layers.  `random` is the control that yours must beat
config = loc_edit.ExperimentConfig(
    facts=20,
    layers=(1, 3, 5, 7),
    localizers=("causal_tracing", "output_change", "random"),
    windows=(1,),
    essence=False,
    workers=1,  # in this process, which knows the function
)
run = loc_edit.Experiment(config).run("runs/notebook_localizer")
run

# %% What each adds to the layer in explaining the rewrite score, with a permutation p-value
matrix = loc_edit.localizer_matrix(run, draws=200)
matrix[["localizer", "r2_layer", "r2_both", "added_corrected", "p_permutation"]].round(3)

# %% What editing each fact at its peak is worth, against one layer for all facts (differences below 0: it is worse)
choices = loc_edit.localizer_choices(run, draws=200)
choices[["localizer", "choice", "mean", "low", "high", "difference", "difference_low", "difference_high"]].round(3)

# %% [markdown]
# Twenty facts are few.  `loc-edit benchmark --plugin my_file.py --localizer output_change` grades a localizer on a
# hundred, and on facts that were planted in known layers.
