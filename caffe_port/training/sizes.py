"""Images of several sizes: whether a net takes those of a batch is said before the net computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from caffe_port.data.batches import Feed
from caffe_port.definition.structure import Structure
from caffe_port.spec import NetSpec
from caffe_port.typing import Shape


@dataclass
class Sizes:
    """The sizes of images that a net was given so far.

    Args:
        spec: the net of a phase.
        feeds: what its inputs read.
    """

    spec: NetSpec
    feeds: Sequence[Feed]
    known: set[tuple[Shape, ...]] = field(default_factory=set)

    def batch(self, number: int) -> list[Tensor]:
        """The tops of all feeds, in the order of the net's inputs.

        Raises:
            SpecError: a layer cannot take images of this size, or would have other blobs.
            CaffePortError: the data cannot be read.
        """
        batches = [feed.batch(number) for feed in self.feeds]
        sizes = tuple(tuple(tops[0].shape) for tops in batches)  # the number of boxes in a label differs anyway
        tops = [top for batch in batches for top in batch]
        if sizes not in self.known:
            if sizes != tuple(feed.shapes[0] for feed in self.feeds):
                self._check([tuple(top.shape) for top in tops])
            self.known.add(sizes)
        return tops

    def _check(self, shapes: Sequence[Shape]) -> None:
        first = self._blobs([shape for feed in self.feeds for shape in feed.shapes])
        for name, blobs in self._blobs(shapes).items():
            for blob, shape in blobs.items():
                if shape != first[name][blob]:
                    raise self.spec.by_name[name].error(
                        f"has {blob} {first[name][blob]} for the first images, and would have {shape} for others, "
                        f"of shape {shapes[0]}",
                        "Images of different sizes need crop_size (or new_height and new_width).",
                    )

    def _blobs(self, shapes: Sequence[Shape]) -> dict[str, dict[str, Shape]]:
        structure = Structure()
        inputs = {blob: shape for (blob, _), shape in zip(self.spec.inputs, shapes, strict=True)}
        structure.add(self.spec, inputs, stub=False)
        return structure.blobs
