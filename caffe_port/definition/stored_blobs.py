"""The blobs of a weights file as the layers of a net hold them.

Blobs that layers share by name are in every one of them in a caffemodel, in an HDF5 file only in the first one, the
owner. NVIDIA's BatchNorm holds what are two layers here, and a DenseBlock what are many, see
:mod:`caffe_port.definition.unfused`.

Sources: net.cpp (ToHDF5, CopyTrainedLayersFromHDF5); batch_norm_layer.cpp of NVIDIA/caffe; DenseBlock_layer.cpp and
DenseBlock_layer.cu of senlinuc/caffe_ocr.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from caffe_port.errors import WeightsError
from caffe_port.formats.caffemodel import LayerBlobs, Weights
from caffe_port.formats.message import Message
from caffe_port.spec import LayerSpec
from caffe_port.typing import Array


def for_layers(weights: Weights, layers: Sequence[Message]) -> Weights:
    """The weights, with a blob for each that the layers ask for and the file has.

    Args:
        weights: of a file.
        layers: the LayerParameters of the net, in its order.
    """
    names = {layer.name for layer in layers}
    return _divided(_completed(weights, layers), names)


def renamed(weights: Weights, phases: Sequence[Sequence[LayerSpec]]) -> Weights:
    """The weights, named as the layers that Caffe copies them into: of two layers of one name, those of an HDF5 file
    go into the last one, those of a caffemodel into the first one, which keeps the name.

    Args:
        weights: of a file.
        phases: the layers of the net in each phase, in its order. Where the phases disagree, the first one counts.
    """
    if weights.format != "HDF5":
        return weights
    last: dict[str, str] = {}
    for layers in phases:
        last = {layer.param.name: layer.name for layer in layers} | last
    if all(name == own for name, own in last.items()):
        return weights
    stored = tuple(dataclasses.replace(layer, name=last.get(layer.name, layer.name)) for layer in weights.layers)
    return dataclasses.replace(weights, layers=stored, empty=tuple(last.get(name, name) for name in weights.empty))


def with_scale(weights: Weights) -> set[str]:
    """Names of the layers of a file that hold what NVIDIA's BatchNorm does: five vectors, or four."""
    return {layer.name for layer in weights.layers if layer.type in ("", "BatchNorm") and _parts(layer) is not None}


def _completed(weights: Weights, layers: Sequence[Message]) -> Weights:
    """With the blobs that an HDF5 file leaves out because another layer owns them."""
    if weights.format != "HDF5":
        return weights
    stored = {layer.name: dict(zip(layer.positions, layer.blobs, strict=True)) for layer in weights.layers}
    owners: dict[str, tuple[str, int]] = {}
    for layer in layers:
        for index, param in enumerate(layer.param):
            if not param.name:
                continue
            owner, position = owners.setdefault(param.name, (layer.name, index))
            blob = stored.get(owner, {}).get(position)
            if layer.name in stored and blob is not None:
                stored[layer.name].setdefault(index, blob)
    return dataclasses.replace(weights, layers=tuple(_filled(layer, stored[layer.name]) for layer in weights.layers))


def _filled(layer: LayerBlobs, blobs: dict[int, Array]) -> LayerBlobs:
    whole = sorted(blobs) == list(range(len(blobs)))
    ordered = tuple(blobs[index] for index in sorted(blobs))
    return dataclasses.replace(layer, blobs=ordered, indices=() if whole else tuple(sorted(blobs)))


def _divided(weights: Weights, layers: Collection[str]) -> Weights:
    """With the blobs of NVIDIA's BatchNorm in two layers, where the net has the second one."""
    held = {layer.name for layer in weights.layers}
    if not any(f"{name}/scale" in layers or f"{name}/0/bn" in layers for name in held):
        return weights
    found: list[LayerBlobs] = []
    for layer in weights.layers:
        if f"{layer.name}/0/bn" in layers:
            found += _of_dense_block(layer, layers)
            continue
        parts = _parts(layer) if f"{layer.name}/scale" in layers else None
        if parts is None:
            found.append(layer)
        else:
            found += [dataclasses.replace(layer, blobs=parts[0]), LayerBlobs(f"{layer.name}/scale", "Scale", parts[1])]
    return dataclasses.replace(weights, layers=tuple(found))


def _of_dense_block(layer: LayerBlobs, layers: Collection[str]) -> list[LayerBlobs]:
    """The blobs of a DenseBlock: n filters, scales, shifts, means and variances each; with ``use_BC`` as many again for
    the narrow convolutions; and a factor, by which the CPU divides statistics and which the GPU leaves at 0.

    Filters are turned: this fork convolves, and Caffe correlates.
    """
    count = next(k for k in range(len(layers)) if f"{layer.name}/{k}/bn" not in layers)
    groups = 10 if f"{layer.name}/0/bn1" in layers else 5
    if len(layer.blobs) != groups * count + 1:
        shown = f"holds {len(layer.blobs)} blobs, the DenseBlock of {count} transitions asks for {groups * count + 1}"
        raise WeightsError(f"layer '{layer.name}' {shown}")
    factor = float(layer.blobs[-1].reshape(-1)[0]) or 1.0
    made = []
    for k in range(count):
        for first, bn, conv in ((0, "bn", "conv"), (5, "bn1", "conv1"))[: groups // 5]:
            weight, *vectors = (layer.blobs[(first + group) * count + k] for group in range(5))
            scale, shift, mean, variance = (vector.reshape(-1) for vector in vectors)
            statistics = (scale, shift, mean / np.float32(factor), variance / np.float32(factor))
            made.append(LayerBlobs(f"{layer.name}/{k}/{bn}", "BN", statistics))
            turned = np.ascontiguousarray(weight[..., ::-1, ::-1])
            made.append(LayerBlobs(f"{layer.name}/{k}/{conv}", "Convolution", (turned,)))
    return made


def _parts(layer: LayerBlobs) -> tuple[tuple[Array, ...], tuple[Array, ...]] | None:
    """Mean, variance and factor; scale and shift. Five blobs are in this order; four are scale, shift, mean, variance.

    None where they are neither.
    """
    blobs = layer.blobs
    sizes = [blob.size for blob in blobs]
    if len(blobs) == 5 and len({sizes[0], sizes[1], sizes[3], sizes[4]}) == 1 and sizes[2] == 1:
        return blobs[:3], tuple(blob.reshape(-1) for blob in blobs[3:])
    if len(blobs) == 4 and len(set(sizes)) == 1:
        scale, shift, mean, variance = (blob.reshape(-1) for blob in blobs)
        return (mean, variance, np.ones(1, np.float32)), (scale, shift)
    return None
