"""Values in a weights file that no training means to store: NaN, infinity, and statistics that make no sense.

Source: batch_norm_layer.cpp (a scale factor of 0 makes mean and variance 0; the deviation is sqrt(variance + eps)).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from caffe_port.formats.caffemodel import LayerBlobs, Weights
from caffe_port.formats.message import Message
from caffe_port.signatures.signature import Signature, signature_of
from caffe_port.terminal import count

_NAMED = 4


def notes(weights: Weights, layers: Iterable[Message] = ()) -> list[str]:
    """Notes on odd values, with the layer of each.

    Args:
        weights: of a file.
        layers: the LayerParameters of the net, for the types that an HDF5 file does not hold.
    """
    types = {layer.name: layer.type for layer in layers}
    broken, odd = [], []
    for index, layer in enumerate(weights.layers):
        record = signature_of(types.get(layer.name) or layer.type)
        names = _names(layer, record)
        broken += _broken(layer, names, weights.not_finite[index])
        odd += _statistics(layer, record, names)
    if len(broken) > _NAMED:
        broken[_NAMED:] = [f"and {count(len(broken) - _NAMED, 'more blob')}"]
    found = [f"the weights contain values that are not finite: {'; '.join(broken)}"] if broken else []
    if len(odd) > _NAMED:
        odd[_NAMED:] = [f"{count(len(odd) - _NAMED, 'more layer')} with such statistics"]
    return found + odd


def _names(layer: LayerBlobs, record: Signature | None) -> list[str]:
    """The name of each blob in the file."""
    known = record.blobs if record is not None else ()
    if "scale_factor" in known and len(layer.blobs) == 4:  # NVIDIA's older BatchNorm, see stored_blobs
        known = ("weight", "bias", "mean", "variance")
    return [known[index] if index < len(known) else f"blob {index}" for index in layer.positions]


def _broken(layer: LayerBlobs, names: Sequence[str], counted: Sequence[tuple[int, int]]) -> list[str]:
    """What is not finite, by blob."""
    found = []
    for name, blob, (nans, infinities) in zip(names, layer.blobs, counted, strict=True):
        if nans or infinities:
            counts = [f"{nans:,} NaN"] * bool(nans) + [f"{infinities:,} infinite"] * bool(infinities)
            found.append(f"layer '{layer.name}', {name}: {' and '.join(counts)} of {count(blob.size, 'value')}")
    return found


def _statistics(layer: LayerBlobs, record: Signature | None, names: Sequence[str]) -> list[str]:
    """A scale factor of 0 beside nonzero statistics, and negative variances."""
    if record is None or "variance" not in record.statistics:
        return []
    blobs = dict(zip(names, layer.blobs, strict=True))
    if "variance" not in blobs:
        return []
    with np.errstate(invalid="ignore"):  # a signaling NaN
        variance = blobs["variance"].astype(np.float64)
    factor = float(blobs["scale_factor"].flat[0]) if blobs.get("scale_factor", np.empty(0)).size else 1.0
    name = f"layer '{layer.name}' ({record.type})"
    if factor == 0:
        if variance.any() or ("mean" in blobs and blobs["mean"].any()):
            return [f"{name}: its scale factor is 0, so Caffe takes 0 for mean and variance, which the file holds"]
        return []
    with np.errstate(all="ignore"):
        variance = variance / factor
        negative = int((variance < 0).sum())
    if not negative:
        return []
    least = float(np.min(variance[variance < 0]))
    what = f"{negative:,} of {count(variance.size, 'variance')} {'is' if negative == 1 else 'are'} negative"
    return [f"{name}: {what}, the least {least:.3g}; where one is below -eps, the outputs are NaN"]
