"""Mistakes of layers that read regions of a picture, or compare two pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas import Layer
from caffe_port.verification.slips.slip import Guess, slip, top, with_bottoms, with_fields


@slip("ROIPooling")
def regions(q: Layer, _: Array) -> Iterator[Guess]:
    p = q.param.roi_pooling_param
    image, rois = q.x, q.bottoms[1]
    flat = rois.reshape(len(rois), -1)
    for scale in dict.fromkeys((1.0, p.spatial_scale / 2, p.spatial_scale * 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)):
        if scale != p.spatial_scale:
            words = f"its spatial_scale is {scale:g}, Caffe's is {p.spatial_scale:g}"
            yield words, top(with_fields(q, "roi_pooling_param", spatial_scale=scale))
    turned = flat[:, [0, 2, 1, 4, 3]].reshape(rois.shape)
    yield "it reads the corners of the regions as (y, x), Caffe as (x, y)", top(with_bottoms(q, image, turned))
    if p.pooled_h != p.pooled_w:
        other = with_fields(q, "roi_pooling_param", pooled_h=p.pooled_w, pooled_w=p.pooled_h)
        yield "its pooled height and width are exchanged (pooled_h, pooled_w)", top(other)
    first = flat.copy()
    first[:, 0] = 0
    yield (
        "it reads all regions from the first item of the batch",
        top(with_bottoms(q, image, first.reshape(rois.shape))),
    )
    sizes = flat.copy()
    sizes[:, 3:5] += sizes[:, 1:3]
    words = "it reads the regions as corner and size (x, y, w, h), Caffe as two corners"
    yield words, top(with_bottoms(q, image, sizes.reshape(rois.shape)))
    yield from _aligned(q, flat)


def _aligned(q: Layer, rois: Array) -> Iterator[Guess]:
    """The mean of samples between pixels, as torchvision.ops.roi_align."""
    p = q.param.roi_pooling_param
    for samples in (0, 1, 2, 4):
        made = with_fields(
            dataclasses.replace(q, param=q.param.copy(type="ROIAlign")),
            "roi_align_param",
            pooled_h=p.pooled_h,
            pooled_w=p.pooled_w,
            spatial_scale=p.spatial_scale,
            sampling_ratio=samples,
            roi_end_mode=0,
        )
        for aligned in (False, True):
            moved = rois.copy()
            moved[:, 1:5] -= 0.5 / p.spatial_scale * aligned
            words = f"it is a ROIAlign (aligned={aligned}), Caffe's takes the maximum of whole pixels (ROIPooling)"
            yield words, top(with_bottoms(made, q.x, moved))


@slip("Correlation")
def correlation(q: Layer, _: Array) -> Iterator[Guess]:
    p, made = q.param.correlation_param, top(q)
    count = p.kernel_size**2 * q.x.shape[1]
    yield f"it does not divide by the number of products ({count}), Caffe does", made * count
    yield "its first and second bottom are exchanged", top(with_bottoms(q, *q.bottoms[::-1]))
    side = round(made.shape[1] ** 0.5)
    if side * side == made.shape[1]:
        grid = made.reshape(made.shape[0], side, side, *made.shape[2:])
        yield "its channels are displacements (x, y), Caffe's (y, x)", grid.swapaxes(1, 2).reshape(made.shape)
        yield "its displacements have the opposite sign", made[:, ::-1]


@slip("Axpy")
def axpy(q: Layer, _: Array) -> Iterator[Guess]:
    a, x, y = q.bottoms
    wide = a.reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    yield "it computes a * y + x, Caffe a * x + y (the order of its bottoms)", wide * y + x
    yield "it does not add its third bottom: a * x, Caffe computes a * x + y", wide * x
    yield "it adds its bottoms: a + x + y, Caffe computes a * x + y", wide + x + y
