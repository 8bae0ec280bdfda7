"""The blobs of a weights file as .safetensors, as Caffe stores them: no net is built, and torch is not needed.

It works for layers of any type, takes as long as copying the file, and no more memory.
"""

from __future__ import annotations

from pathlib import Path

from caffe_port.definition import model_archive
from caffe_port.formats import caffemodel
from caffe_port.formats.caffemodel import Weights, shapes_agree
from caffe_port.formats.message import Message
from caffe_port.formats.upgrade_v1 import upgrade
from caffe_port.signatures.plugins import find
from caffe_port.signatures.signature import Trait, has
from caffe_port.storage import output_folder, safetensors
from caffe_port.storage.output_folder import Result
from caffe_port.typing import Array
from caffe_port.version import __version__

BLOBS = "blobs.safetensors"


def named(weights: Weights, definition: Message | None = None) -> dict[str, Array]:
    """The blobs by ``layer.blob``: ``conv1.weight``, ``bn1.scale_factor``.

    Args:
        definition: NetParameter with the layers' types, in addition to the one in the file. A blob of a
            layer whose type is not known is named by its number, from 0, as in Caffe's HDF5 files.

    Returns:
        Caffe's layout and precision. The axes of length one that files of the 4-D era put before a bias or a matrix
        are left out. Of two layers of one name the last counts, as in Caffe (net.cpp, CopyTrainedLayersFrom).

    Raises:
        SpecError: a definition of an old form that cannot be read as a net.
    """
    layers: dict[str, Message] = {}
    for net in (weights.net, definition):
        layers |= {layer.name: layer for layer in upgrade(net, weights.path).layer} if net is not None else {}
    return {
        f"{stored.name}.{name}": _without_padding(blob, name, layers.get(stored.name))
        for stored in {layer.name: layer for layer in weights.layers}.values()
        for name, blob in zip(_names(layers.get(stored.name), len(stored.blobs)), stored.blobs, strict=True)
    }


def _names(layer: Message | None, count: int) -> list[str]:
    signature = find(layer) if layer is not None else None
    if layer is None or signature is None:
        return [str(k) for k in range(count)]
    names = signature.blobs
    if signature.has(Trait.BOTTOM_FOR_BLOB) and len(layer.bottom) > 1:
        names = names[1:]
    if len(names) > count:
        names = tuple(name for name in names if name not in signature.optional)
    return [names[k] if k < len(names) else str(k) for k in range(count)]


def _without_padding(blob: Array, name: str, layer: Message | None) -> Array:
    """A vector of the 4-D era, (1, 1, 1, n) or (1, n, 1, 1), as (n); a matrix, (1, 1, m, n), as (m, n)."""
    if blob.ndim != 4 or layer is None:
        return blob
    if name == "weight":
        is_matrix = has(layer.type, Trait.MATRIX) and blob.shape[:2] == (1, 1)
        return blob.reshape(blob.shape[2:]) if is_matrix else blob
    is_vector = not name.isdecimal() and name != "value" and shapes_agree(blob.shape, (blob.size,))
    return blob.reshape(-1) if is_vector else blob


def convert(
    weights: str | Path, folder: str | Path, definition: str | Path | None = None, *, force: bool = False
) -> Result:
    """Writes blobs.safetensors and port.json.

    Args:
        weights: .caffemodel, .caffemodel.h5, or a model archive of DIGITS.
        folder: is made; an existing one must be empty.
        definition: a prototxt with the layers' types, which a .caffemodel also contains.
        force: replaces the files of an earlier run in ``folder``; other files stay.

    Raises:
        CaffePortError: bad input, or the folder cannot be written. Nothing is left behind.
    """
    folder = Path(folder)
    output_folder.check(folder, force)
    is_archive = model_archive.is_archive(weights)
    stored, net = model_archive.read(weights).weights if is_archive else caffemodel.read(weights), None
    if definition is not None:
        from caffe_port.formats import prototxt

        net = prototxt.read(definition, "NetParameter")
    with output_folder.beside(folder) as temporary:
        write(temporary / BLOBS, stored, net)
        report = {
            "net": stored.net.name if stored.net is not None else "",
            "layers": len(stored.layers),
            "parameters": stored.parameters,
            "from": [
                {"file": Path(path).name, "bytes": Path(path).stat().st_size}
                for path in (definition, weights)
                if path is not None
            ],
            "files": [{"file": BLOBS, "bytes": (temporary / BLOBS).stat().st_size}],
            "versions": {"caffe-port": __version__},
            "time": output_folder.now(),
        }
        output_folder.write_report(temporary, report)
        files = (BLOBS, output_folder.REPORT)
        output_folder.move_in(temporary, folder, files)
    return Result(folder, files, "", len(stored.layers), stored.parameters, "blobs as Caffe stores them", ())


def write(path: Path, weights: Weights, definition: Message | None = None) -> None:
    """Writes what :func:`named` gives to a .safetensors file."""
    blobs = named(weights, definition).items()
    stored = {name.encode(errors="replace").decode(): safetensors.Stored.of(blob) for name, blob in blobs}
    safetensors.write(path, stored, weights.mapping)
