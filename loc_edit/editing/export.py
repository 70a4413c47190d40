"""An edited model written back to a Hugging Face directory: changed tensors are patched, all other bytes copied."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loc_edit.editing.update import Edit, EditMismatch
from loc_edit.models.checkpoints import MlpOutput, mlp_output
from loc_edit.models.checks import BadModel
from loc_edit.models.identity import fingerprint
from loc_edit.models.loading import load_model
from loc_edit.models.model import Model, W_out

log = logging.getLogger(__name__)

RECORD = "loc_edit.json"
"""What was edited, kept beside the checkpoint."""

OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.bin.index.json", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.pt", "*.pth")
"""Weights that nothing reads where there are safetensors: copied, they would be there unedited."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def export(
    edit: Edit | Sequence[Edit],
    source: str | Path,
    out: str | Path,
    *,
    model: Model | None = None,
) -> Path:
    """Write the checkpoint `source` with `edit` in its weights to the new directory `out`.

    Only the edited layers' MLP output tensors differ, in the dtype that they have; every other byte of the weights,
    the tokenizer and the configuration are copied.  Weights in other formats than safetensors, which would be there
    unedited, are left out.  `loc_edit.json` says what was edited.  The directory appears whole or not at all.

    Args:
        edit: one, or several that are applied in this order; each was made for the model of `source`, or for it with
            those before applied.
        source: a local Hugging Face directory with safetensors, sharded or not.
        out: a directory that does not exist.
        model: that of `source`, if it is loaded already, without edits; wanted where the edit was made for a model
            that was loaded with another dtype than float32.

    Returns:
        The new directory.

    Raises:
        EditMismatch: an edit was made for another model, or has a bias where the checkpoint has none.
        BadModel: the source cannot be read, or has no tensor of that name.
        FileExistsError: `out` exists.
    """
    edits = [edit] if isinstance(edit, Edit) else list(edit)
    source, out = Path(source).resolve(), Path(out).resolve()
    if not any(one.updates for one in edits):
        raise ValueError("export: no edit that changes anything is given")
    if out.exists():
        raise FileExistsError(f"{out}: is there already; give a directory that is not")
    if out.is_relative_to(source):
        raise ValueError(f"{out}: is inside the checkpoint {source}; give a directory that is not")
    places, earlier = _places(source), _earlier(source)
    model = _load(source, edits) if model is None else model
    _check(edits, model)
    changed = dict(_changed(edits, model, source, places))
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    kept = {place.file for place in places.values()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, partial, ignore=lambda folder, names: _left_out(folder, names, kept))
        for name, value in changed.items():
            _patch(partial / places[name].file, places[name], value)
        record = {
            "model": fingerprint(model),
            "tensors": sorted(changed),
            "edits": [*earlier, *(dict(one.about) for one in edits)],
        }
        (partial / RECORD).write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _earlier(source: Path) -> list[Any]:
    """The edits that the source already holds, where it was written by `export`."""
    try:
        return list(json.loads((source / RECORD).read_text(encoding="utf-8"))["edits"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"model directory {source}: {RECORD} is no record of edits ({error})") from error


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are: file name, and the half-open range in it."""

    file: str
    start: int
    stop: int


def _places(source: Path) -> dict[str, _Place]:
    """Every tensor of the checkpoint by name.

    A safetensors file is 8 bytes that give the length of a JSON header, the header, and the tensors' bytes.
    """
    if not source.is_dir():
        raise BadModel(f"model directory {source}: it is not there")
    index = source / "model.safetensors.index.json"
    try:
        if (source / "model.safetensors").is_file():
            files = ["model.safetensors"]
        elif index.is_file():
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            raise BadModel(
                f"model directory {source}: no safetensors in it; write them first: "
                "AutoModelForCausalLM.from_pretrained(directory).save_pretrained(new_directory)"
            )
        places = {}
        for name in files:
            with (source / name).open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            for tensor, about in header.items():
                if tensor != "__metadata__":
                    start, stop = about["data_offsets"]
                    places[tensor] = _Place(name, 8 + size + start, 8 + size + stop)
    except (OSError, KeyError, ValueError, MemoryError) as error:
        if isinstance(error, BadModel):
            raise
        raise BadModel(f"model directory {source}: its safetensors cannot be read ({error})") from error
    return places


def _load(source: Path, edits: Sequence[Edit]) -> Model:
    """The checkpoint's model, with BOS as the first edit was made."""
    model = load_model(source, device="cpu")
    wanted = {name for one in edits[:1] for name in _made_for(one.about)}
    if wanted and fingerprint(model) not in wanted:
        model.cfg.default_prepend_bos = not model.cfg.default_prepend_bos
    return model


def _made_for(about: Mapping[str, Any]) -> Iterator[str]:
    """The fingerprints of the models that an edit, or the parts of one, were made for."""
    if about.get("model"):
        yield str(about["model"])
    for part in about.get("parts", ()):
        yield from _made_for(part)


def _check(edits: Sequence[Edit], model: Model) -> None:
    """Refuse edits that were made neither for the model nor for it with the edits before."""
    plain = fingerprint(model)
    with ExitStack() as applied:
        for number, one in enumerate(edits, 1):
            one.check_shapes(model)
            known = {plain, fingerprint(model)}
            if strangers := set(_made_for(one.about)) - known:
                made_for, is_for = ", ".join(sorted(strangers)), " or, with the edits before, ".join(sorted(known))
                raise EditMismatch(
                    f"edit {number} of {len(edits)} was made for model {made_for}, and the checkpoint is {is_for}; "
                    "if that model was loaded with another dtype, give it as model="
                )
            applied.enter_context(one.applied(model))


def _changed(
    edits: Sequence[Edit], model: Model, source: Path, places: Mapping[str, _Place]
) -> Iterator[tuple[str, Tensor]]:
    """The edited tensors by their names in the checkpoint, as it keeps them.

    The changes are added to what the checkpoint holds, in float32 at least and in the order of `Edit.write`.
    """
    names = mlp_output(model)
    updates = [update for one in edits for update in one.updates]
    for layer in sorted({update.layer for update in updates}):
        mine = [update for update in updates if update.layer == layer]
        biases = [update.bias for update in mine if update.bias is not None]
        if biases and not names.bias:
            raise EditMismatch(f"edit of layer {layer}: it changes a bias, and the checkpoint has none")
        name, stored = _stored(source, places, names.weight.format(layer))
        _check_same(stored, model, layer, names)
        deltas = [update.delta for update in mine]
        yield name, _plus(name, stored, [delta.T if names.transposed else delta for delta in deltas])
        if biases:
            name, stored = _stored(source, places, names.bias.format(layer))
            yield name, _plus(name, stored, biases)


def _stored(source: Path, places: Mapping[str, _Place], name: str) -> tuple[str, Tensor]:
    """A tensor under the name that the checkpoint has for it: some leave out the first part."""
    found = next((one for one in (name, name.partition(".")[2]) if one in places), None)
    if found is None:
        raise BadModel(f"model directory {source}: no tensor {name} in it")
    try:
        with safe_open(source / places[found].file, framework="pt") as file:
            stored = file.get_tensor(found)
    except (SafetensorError, OSError) as error:
        raise BadModel(f"model directory {source}: tensor {found} cannot be read ({error})") from error
    if stored.dtype not in FLOATS:
        raise BadModel(f"model directory {source}: tensor {found} is of {stored.dtype}, and floats are wanted")
    return found, stored


def _check_same(stored: Tensor, model: Model, layer: int, names: MlpOutput) -> None:
    """Refuse a model whose `W_out` is not the checkpoint's."""
    weight = W_out(model, layer).detach().cpu()
    oriented = stored.T if names.transposed else stored
    if oriented.shape != weight.shape or not torch.equal(oriented.to(weight.dtype), weight):
        raise EditMismatch(
            f"layer {layer}: W_out of the given model is not the checkpoint's; it must come without edits"
        )


def _plus(name: str, stored: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    """The stored tensor with the changes added, in its own dtype; a warning says what rounding takes away."""
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
    """Names that are not copied: weights that are not edited here, and what version control and caches keep."""
    ignored = shutil.ignore_patterns(*OTHER_WEIGHTS, ".git", ".cache", RECORD)(folder, list(names))
    stale = ignored - kept
    if weights := sorted(name for name in stale if name not in (".git", ".cache", RECORD)):
        log.warning("not copied, as they would stay unedited: %s", ", ".join(weights))
    return stale


def _patch(path: Path, place: _Place, value: Tensor) -> None:
    """Overwrite a tensor's bytes in a copied file."""
    data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if len(data) != place.stop - place.start:
        raise BadModel(f"{path}: {place.stop - place.start} bytes are there for a tensor of {len(data)}")
    path.chmod(path.stat().st_mode | 0o200)  # files of the hub's cache are read-only
    with path.open("r+b") as file:
        file.seek(place.start)
        file.write(data)
