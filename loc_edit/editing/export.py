"""An edited model written back to a Hugging Face directory: changed tensors are patched, all other bytes copied."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loc_edit.arguments import checked
from loc_edit.editing.update import Edit, EditMismatch
from loc_edit.files import building, join_inside
from loc_edit.models.catalog import model_directory
from loc_edit.models.checkpoints import mlp_output, refusing, shard_names
from loc_edit.models.checks import BadModel
from loc_edit.models.identity import fingerprint
from loc_edit.models.loading import load_model
from loc_edit.models.model import Model, W_out

log = logging.getLogger(__name__)

RECORD = "loc_edit.json"
"""The file beside the checkpoint that says what was edited."""

OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.bin.index.json", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.pt", "*.pth")
"""Weights that nobody reads if there are safetensors.  They are not copied, because they would be unedited."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


Places = Mapping[str, tuple[str, int]]
"""By a tensor's name, the name of its file and the number of its first byte in it."""


@checked
def export(
    edit: Edit | Sequence[Edit],
    source: str | Path,
    out: str | Path,
    *,
    model: Model | None = None,
) -> Path:
    """Write the checkpoint `source` with `edit` in its weights to the new directory `out`.

    Only the MLP output tensors of the edited layers differ, in the dtype that they have; every other byte of the
    weights, the tokenizer and the configuration is copied.  Weights in other formats than safetensors are left out,
    because they would be unedited.  `loc_edit.json` says what was edited.  The directory appears whole or not at all.

    Args:
        edit: one edit, or several that are applied in this order; each was made for the model of `source`, or for
            that model with the edits before applied.
        source: a local Hugging Face directory with safetensors, sharded or not; or a named model or a GGUF file, whose
            converted directory it is.
        out: a directory that does not exist.
        model: the model of `source`, without edits, if it is loaded already; needed if the edit was made for a model
            that was loaded with another dtype than float32.

    Returns:
        The new directory.

    Raises:
        EditMismatch: an edit was made for another model, or has a bias and the checkpoint has none.
        BadModel: the source cannot be read, or lacks a tensor.
        FileExistsError: `out` exists.
        ValueError: `out` is inside `source`, or no edit changes anything.
        StoreError: the disk refused.
    """
    edits = [edit] if isinstance(edit, Edit) else list(edit)
    source, out = (model_directory(source) or Path(source)).resolve(), Path(out).resolve()
    if not any(edit.updates for edit in edits):
        raise ValueError("export: expected an edit that changes something, got none")
    for one in edits:
        one.refuse_others("export")
    if out.exists():
        raise FileExistsError(f"{out} exists already: expected the name of a new directory")
    if out.is_relative_to(source):
        raise ValueError(f"{out} is inside the checkpoint {source}: expected a directory outside")
    places, earlier = _places(source), _earlier_edits(source)
    model = _load(source, edits) if model is None else model
    _check(edits, model)
    changed = dict(_changed(edits, model, source, places))
    edited = [*earlier, *(dict(edit.about) for edit in edits)]
    record = {"model": fingerprint(model), "tensors": sorted(changed), "edits": edited}
    kept = {file for file, _ in places.values()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with building(out) as partial:
        shutil.copytree(
            source, partial, ignore=lambda folder, names: _left_out(folder, names, kept), dirs_exist_ok=True
        )
        for name, value in changed.items():
            _patch(partial, *places[name], value)
        (partial / RECORD).write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
    return out


def _earlier_edits(source: Path) -> list[Any]:
    """The edits that the source holds already, if `export` wrote it."""
    try:
        return list(json.loads((source / RECORD).read_text(encoding="utf-8"))["edits"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"model directory {source}: {RECORD} is no record of edits ({error})") from error


def _places(source: Path) -> Places:
    """Where every tensor of the checkpoint begins.

    A safetensors file is 8 bytes that give the length of a JSON header, the header, and the tensors' bytes.
    """
    places: dict[str, tuple[str, int]] = {}
    for name in shard_names(source):
        with refusing(f"model directory {source}: {name} cannot be read"):
            with safe_open(source / name, framework="pt"):
                pass  # refuses a header whose sizes and places do not fit the file
            with (source / name).open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            places |= {tensor: (name, 8 + size + entry["data_offsets"][0]) for tensor, entry in header.items()}
    return places


def _load(source: Path, edits: Sequence[Edit]) -> Model:
    """The checkpoint's model, which prepends BOS if the first edit was made so."""
    model = load_model(source, device="cpu")
    expected = _made_for(edits[0].about)
    if expected and fingerprint(model) not in expected:
        model.cfg.default_prepend_bos = not model.cfg.default_prepend_bos
    return model


def _made_for(about: Mapping[str, Any]) -> set[str]:
    """The fingerprints of the models that an edit, or its parts, were made for."""
    own = {str(about["model"])} if about.get("model") else set()
    return own.union(*map(_made_for, about.get("parts", ())))


def _check(edits: Sequence[Edit], model: Model) -> None:
    """Refuse edits that were made neither for the model nor for the model with the edits before."""
    unedited = fingerprint(model)
    with ExitStack() as applied:
        for number, edit in enumerate(edits, 1):
            edit.check_shapes(model)
            known = {unedited, fingerprint(model)}
            if strangers := _made_for(edit.about) - known:
                made_for, given = ", ".join(sorted(strangers)), " or, with the edits before, ".join(sorted(known))
                raise EditMismatch(
                    f"edit {number} of {len(edits)} was made for model {made_for}, and the checkpoint is {given}; "
                    "if that model was loaded with another dtype, give it as model="
                )
            applied.enter_context(edit.applied(model))


def _changed(edits: Sequence[Edit], model: Model, source: Path, places: Places) -> Iterator[tuple[str, Tensor]]:
    """The edited tensors by their names in the checkpoint, in its dtype and orientation.

    The changes are added to the checkpoint's tensors, in float32 at least and in the order of `Edit.write`.
    """
    names = mlp_output(model)
    updates = [update for edit in edits for update in edit.updates]
    for layer in sorted({update.layer for update in updates}):
        of_layer = [update for update in updates if update.layer == layer]
        biases = [update.bias for update in of_layer if update.bias is not None]
        if biases and not names.bias:
            raise EditMismatch(f"edit of layer {layer}: it changes a bias, and the checkpoint has none")
        name, stored = _stored(source, places, names.weight.format(layer))
        _check_same(stored.T if names.transposed else stored, model, layer)
        deltas = [update.delta.T if names.transposed else update.delta for update in of_layer]
        yield name, _plus(name, stored, deltas)
        if biases:
            name, stored = _stored(source, places, names.bias.format(layer))
            yield name, _plus(name, stored, biases)


def _stored(source: Path, places: Places, name: str) -> tuple[str, Tensor]:
    """A tensor, and its name in the checkpoint: some checkpoints leave out the first part of names."""
    own_name = name if name in places else name.partition(".")[2]
    if own_name not in places:
        raise BadModel(f"model directory {source}: it has no tensor {name}")
    try:
        with safe_open(source / places[own_name][0], framework="pt") as file:
            stored = file.get_tensor(own_name)
    except (SafetensorError, OSError) as error:
        raise BadModel(f"model directory {source}: tensor {own_name} cannot be read ({error})") from error
    if stored.dtype not in FLOATS:
        raise BadModel(f"model directory {source}: tensor {own_name}: expected floats, got {stored.dtype}")
    return own_name, stored


def _check_same(stored: Tensor, model: Model, layer: int) -> None:
    """Refuse a model whose `W_out` is not the checkpoint's."""
    weight = W_out(model, layer).detach().cpu()
    if stored.shape != weight.shape or not torch.equal(stored.to(weight.dtype), weight):
        raise EditMismatch(f"layer {layer}: expected model= without edits, got a W_out that is not the checkpoint's")


def _plus(name: str, stored: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    """The stored tensor with the changes added, in its own dtype; a warning says how much of them rounding loses."""
    wide = torch.promote_types(stored.dtype, torch.float32)
    exact = stored.to(wide)
    for delta in deltas:
        exact = exact + delta.detach().cpu().to(wide)
    result = exact.to(stored.dtype)
    if stored.dtype != wide:
        lost = ((result.to(wide) - exact).norm() / (exact - stored.to(wide)).norm()).item()
        log.warning("%s is stored in %s, which rounds: the change is off by %.1f%%", name, stored.dtype, 100 * lost)
    return result


def _left_out(folder: str, names: Sequence[str], kept: set[str]) -> set[str]:
    """Names that are not copied: weights that are not edited, and the files of version control and caches."""
    own = {RECORD, ".git", ".cache"}
    left_out = shutil.ignore_patterns(*OTHER_WEIGHTS, *own)(folder, list(names)) - kept
    if weights := sorted(left_out - own):
        log.warning("not copied, as they would stay unedited: %s", ", ".join(weights))
    return left_out


def _patch(folder: Path, file_name: str, start: int, value: Tensor) -> None:
    """Overwrite a tensor's bytes in a copied file."""
    path = join_inside(folder, file_name)
    path.chmod(path.stat().st_mode | 0o200)  # files of the hub's cache are read-only
    with path.open("r+b") as file:
        file.seek(start)
        file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
