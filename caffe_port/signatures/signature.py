"""One record a layer type: what it takes, what it makes and what it keeps, without torch.

Every registered type has a :class:`Signature`. The records of caffe-port's own types are in the families next to this
module, named as those of :mod:`caffe_port.layers`, each declared once; that of a plugin is made from its class. Whoever
needs a list of types ("those with weights", "those that keep the size") asks the records, see :func:`types_with`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message, not_finite
from caffe_port.terminal import count
from caffe_port.typing import Shape

ANY = 1 << 30
"""As many bottoms as one likes."""

TopsRule = Callable[[Message, Sequence[Shape]], Sequence[Shape]]
"""(LayerParameter, bottom shapes) -> top shapes. Raises SpecError for what the layer refuses."""
BlobsRule = Callable[[Message, Sequence[Shape]], Mapping[str, Shape]]
"""(LayerParameter, bottom shapes) -> the shapes of the blobs that this layer has, in Caffe's order."""
SettlesRule = Callable[[Message, str], tuple[Message, str]]
"""(LayerParameter, dialect or empty) -> the same with what it left open written down, and a note about that; empty if
nothing was open. The dialects are those of :mod:`caffe_port.formats.dialects`."""
MacsRule = Callable[[Message, Sequence[Shape], Sequence[Shape]], int]
"""(LayerParameter, bottom shapes, top shapes) -> multiply-accumulates of one forward pass."""


class Trait(enum.Flag):
    """What can be relied on for every layer of a type."""

    NONE = 0
    SOURCE = enum.auto()
    """The tops come from outside: they are inputs of the Net, and no module is built."""
    SINK = enum.auto()
    """Takes any bottoms and makes no top."""
    LOSS = enum.auto()
    """The first top has loss_weight 1 unless the net says otherwise."""
    LABELS = enum.auto()
    """Exists for labels only (losses, Accuracy): the deploy view drops it. The rule does not look at the labels'
    shapes: where they come from a database, those are not in the net."""
    PER_BOTTOM = enum.auto()
    """Several bottoms are treated one by one, each giving its own top."""
    WHOLE_LAYER = enum.auto()
    """``from_caffe`` receives the LayerParameter itself: more counts than one message (the number of tops, say)."""
    KEEPS_CHANNELS = enum.auto()
    """The first top has the channels of the first bottom."""
    KEEPS_PLACES = enum.auto()
    """A pixel of a top shows the same place as that pixel of the first bottom."""
    _ELEMENT = enum.auto()
    ELEMENTWISE = KEEPS_CHANNELS | KEEPS_PLACES | _ELEMENT
    """Each number of the top comes from the numbers at its own place, and from parameters."""
    _CURVE = enum.auto()
    ACTIVATION = ELEMENTWISE | _CURVE
    """Elementwise, of one bottom: a curve."""
    _LINE = enum.auto()
    AFFINE = ELEMENTWISE | _LINE
    """In TEST a factor and a summand for each channel, which may as well lie in the weights before them."""
    BATCH_STATISTICS = enum.auto()
    """The items of a batch are normalized by shared statistics."""
    NO_NUMBERS = enum.auto()
    """In TEST the tops hold the numbers of the bottom, in their order: none is changed."""
    SHARES_MEMORY = enum.auto()
    """The tops share the memory of the bottoms (ShareData in Caffe)."""
    SHARES_ALONE = enum.auto()
    """A single top shares the memory of a single bottom."""
    NOT_IN_PLACE = enum.auto()
    """Refuses to overwrite its bottom."""
    REARRANGES = enum.auto()
    """Moves, joins, cuts or copies numbers, and computes none."""
    AGGREGATES = enum.auto()
    """Takes the numbers along an axis together (a sum, a softmax), without parameters."""
    SLIDES = enum.auto()
    """A window slides over the bottom, as the message says; a pixel of the top belongs to a place of the window."""
    SPREADS = enum.auto()
    """The inverse: a pixel of the bottom is spread over a window of the top."""
    DEPTHWISE = enum.auto()
    """``num_output`` and ``group`` are the bottom's channels, unless they are given."""
    _WHATEVER = enum.auto()
    PER_CHANNEL = DEPTHWISE | _WHATEVER
    """``num_output`` and ``group`` are the bottom's channels, whatever is given."""
    ROWS = enum.auto()
    """Files may store its vectors as rows, (1, C)."""
    MATRIX = enum.auto()
    """The weight is a matrix, which files of the 4-D era hold as (1, 1, rows, columns)."""
    _PRODUCT = enum.auto()
    DENSE = MATRIX | _PRODUCT
    """A product with everything from ``axis`` on: the weight is (num_output, K), transposed (K, num_output)."""
    BOTTOM_FOR_BLOB = enum.auto()
    """A second bottom stands for the first blob."""
    NO_BACKWARD = enum.auto()
    """The backward pass of a fork's layer does nothing: its bottoms keep a gradient of zeros."""
    OTHERS = enum.auto()
    """Stands for types of several forks, whose parameters are not known here."""
    FOREIGN = enum.auto()
    """Runs code that is not part of Caffe, so that a record says nothing about its numbers."""


class Holds(enum.Enum):
    """What the numbers of a bottom mean."""

    NUMBERS = enum.auto()
    """Anything."""
    LABELS = enum.auto()
    """A class for each item or place: whole numbers below the length of the class axis."""
    FLAGS = enum.auto()
    """0 or 1."""
    INDICES = enum.auto()
    """Whole numbers that choose rows, items of the first bottom or embeddings, or places in a plane of the top."""
    BOXES = enum.auto()
    """Regions (R, 5): image, x1, y1, x2, y2."""
    PRIORS = enum.auto()
    """(1, 2, boxes * 4): the corners of boxes in fractions of the image, and their variances. SSD."""
    OBJECTS = enum.auto()
    """True boxes (1, 1, boxes, 8): image, label, instance, x1, y1, x2, y2, difficult. SSD."""
    DETECTIONS = enum.auto()
    """(1, 1, found, 7): image, label, score, x1, y1, x2, y2. SSD."""
    IMAGE_SIZES = enum.auto()
    """(N, 3): height, width and scale of every image (Faster R-CNN); or height and width, in any shape (DeepLab)."""
    STEPS = enum.auto()
    """Sequences (steps, streams, ...)."""
    CONTINUES = enum.auto()
    """(steps, streams): 0 where a sequence begins, else 1."""


@dataclass(frozen=True)
class Signature:
    """What is known of one layer type.

    Attributes:
        type: Caffe's type string.
        tops: the rule of the top shapes, which also refuses what the layer refuses. None: the tops come from outside,
            or (a plugin) the class is run on the meta device.
        aliases: further type strings of forks that mean the same layer.
        messages: fields of LayerParameter with the parameters: the first that a layer has, else the last.
        also: further messages of LayerParameter that count.
        bottoms: least and greatest number of bottoms.
        holds: what the bottoms hold, as far as they hold more than numbers.
        blobs: names of Caffe's parameter blobs, in Caffe's order.
        blob_shapes: their rule; what it leaves out is absent.
        optional: the blobs before the last that a layer may be without.
        statistics: the blobs that a forward in TRAIN writes and no solver learns: BatchNorm's.
        macs: its rule; None: 0. What is done once for each number (biases, activations, pooling) does not count.
        python: ``module.class`` of the Python layers that it stands for.
        settles: how a layer is read of which forks make different things, where it does not say what it means.
        traits: what can be relied on.
    """

    type: str
    tops: TopsRule | None
    aliases: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    bottoms: tuple[int, int] = (1, 1)
    holds: tuple[Holds, ...] = ()
    blobs: tuple[str, ...] = ()
    blob_shapes: BlobsRule | None = None
    optional: frozenset[str] = frozenset()
    statistics: frozenset[str] = frozenset()
    macs: MacsRule | None = None
    python: tuple[str, ...] = ()
    settles: SettlesRule | None = None
    traits: Trait = Trait.NONE

    def has(self, trait: Trait) -> bool:
        return trait in self.traits

    def parameters(self, layer: Message) -> Message:
        """The message with the parameters of a LayerParameter, which is that itself where the type has none."""
        if not self.messages:
            return layer
        name = next((name for name in self.messages if layer.has(name)), self.messages[-1])
        known = layer.has(name) or layer.schema is None or name in layer.schema.fields
        return getattr(layer, name) if known else Message(None)  # a fork's field, outside the schema

    def top_shapes(self, layer: Message, bottoms: Sequence[Shape]) -> list[Shape]:
        """The shapes of a layer's tops.

        Raises:
            SpecError: the layer is refused; without its name and line.
        """
        assert self.tops is not None, self.type
        least, most = self.bottoms
        if not least <= len(bottoms) <= most:
            raise SpecError(f"{count(len(bottoms), 'bottom')}; the layer takes {_count(least, most)}")
        bottoms = [tuple(shape) for shape in bottoms]
        try:
            return [tuple(shape) for shape in self.tops(layer, bottoms)]
        except (IndexError, ValueError, ArithmeticError):
            if (what := not_finite(self.parameters(layer))) != "":
                raise SpecError(what) from None
            raise SpecError(f"does not fit its bottoms of shape {', '.join(map(str, bottoms))}") from None


def _count(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} or more" if most == ANY else f"{least} to {most}"


SIGNATURES: dict[str, Signature] = {}
"""The records by type string, aliases included."""

PYTHON: dict[str, Signature] = {}
"""``module.class`` of a Python layer -> the record of what stands for it."""

LABEL_SUFFIXES = ("Loss", "LossOHEM", "Accuracy")
"""How the types are named that compare scores with labels, where a fork's type is not known."""

UNSUPPORTED: dict[str, str] = {"MatRead": "reads .mat files; make its top an Input"}
"""Types that cannot exist here: type -> reason and what to do instead."""


def declare(
    type_: str,
    tops: TopsRule | None,
    *,
    message: str | tuple[str, ...] = (),
    also: tuple[str, ...] = (),
    bottoms: int | tuple[int, int] = 1,
    optional: Sequence[str] = (),
    statistics: Sequence[str] = (),
    aliases: tuple[str, ...] = (),
    holds: tuple[Holds, ...] = (),
    blobs: tuple[str, ...] = (),
    blob_shapes: BlobsRule | None = None,
    macs: MacsRule | None = None,
    python: tuple[str, ...] = (),
    settles: SettlesRule | None = None,
    traits: Trait = Trait.NONE,
) -> Signature:
    """Makes the record of a type, and registers it."""
    return register(
        Signature(
            type=type_,
            tops=tops,
            aliases=aliases,
            messages=(message,) if isinstance(message, str) else message,
            also=also,
            bottoms=(bottoms, bottoms) if isinstance(bottoms, int) else bottoms,
            holds=holds,
            blobs=blobs,
            blob_shapes=blob_shapes,
            optional=frozenset(optional),
            statistics=frozenset(statistics),
            macs=macs,
            python=python,
            settles=settles,
            traits=traits,
        )
    )


def register(signature: Signature) -> Signature:
    """Registers a record under its type, its aliases and the Python layers that it stands for."""
    SIGNATURES.update(dict.fromkeys((signature.type, *signature.aliases), signature))
    PYTHON.update(dict.fromkeys(signature.python, signature))
    return signature


def signature_of(type_: str) -> Signature | None:
    """The record of a type string, or None; see also :func:`caffe_port.signatures.plugins.find`."""
    return SIGNATURES.get(type_)


def has(type_: str, trait: Trait) -> bool:
    """Whether a type is registered and has a trait."""
    signature = SIGNATURES.get(type_)
    return signature is not None and trait in signature.traits


def types_with(trait: Trait) -> frozenset[str]:
    """The registered types with a trait."""
    return frozenset(name for name, signature in SIGNATURES.items() if trait in signature.traits)


def keeps_blobs(type_: str) -> bool:
    """Whether layers of a type may have parameter blobs."""
    signature = SIGNATURES.get(type_)
    return signature is not None and bool(signature.blobs)


def has_weights(type_: str) -> bool:
    """Whether the first blob of a type is the weight of a convolution or product: (num_output, inputs, kernel), or
    (inputs, num_output, kernel) where it spreads.
    """
    signature = SIGNATURES.get(type_)
    kinds = (Trait.SLIDES, Trait.SPREADS, Trait.DENSE)
    return signature is not None and bool(signature.blobs) and any(map(signature.has, kinds))


def holds(type_: str, bottom: int) -> Holds:
    """What a bottom of a type holds, by its number."""
    signature = SIGNATURES.get(type_)
    known = signature.holds if signature is not None else ()
    return known[bottom] if bottom < len(known) else Holds.NUMBERS


def compares_labels(type_: str) -> bool:
    """Whether a type exists for labels only; one that is not known, by its name."""
    return has(type_, Trait.LABELS) or type_.endswith(LABEL_SUFFIXES)
