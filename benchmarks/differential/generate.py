"""Draws random small nets of the types that both sides know.

What a type takes comes from its record (number of bottoms, what they hold, which shapes it refuses), its parameters
from both schemas: a field is drawn if Caffe's schema has it too. Some layers begin as one of the cases that the tests
of the records keep, with other lengths and other fields. Every net comes from a seed alone.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from typing import Any

import signature_cases
from case import SPECIAL, Case, Values, input_layer

from caffe_port.errors import CaffePortError
from caffe_port.formats.message import Field, Message
from caffe_port.layers import class_of
from caffe_port.signatures import shapes
from caffe_port.signatures.signature import SIGNATURES, Holds, Signature, Trait, holds, keeps_blobs
from caffe_port.spec import LayerSpec
from caffe_port.typing import Shape

INTEGERS: dict[str, Sequence[int]] = {
    "axis": (-4, -3, -2, -1, 0, 1, 1, 1, 2, 2, 3, 4),
    "end_axis": (-3, -2, -1, -1, 0, 1, 2, 3),
    "num_axes": (-1, 0, 1, 1, 2, 3),
    "concat_dim": (0, 1, 2),
    "slice_dim": (0, 1, 2),
    "stride": (1, 1, 2, 3),
    "pad": (0, 0, 1, 2),
    "dilation": (1, 2, 3),
    "kernel": (1, 2, 2, 3, 3, 4),
    "group": (1, 1, 2, 3, 4),
    "num_output": (1, 2, 3, 4, 6),
    "input_dim": (3, 5, 7),
    "top_k": (1, 1, 2, 3),
    "tiles": (1, 2, 3),
    "ignore_label": (-1, 0, 1, 2, 255),
    "offset": (0, 0, 1, 2),
    "slice_point": (1, 2, 3, 4),
    "order": (0, 1, 2, 3, 4),
    "dim": (-1, 0, 0, 1, 2, 3, 4, 6, 12),
    "local_size": (1, 3, 3, 5, 7, 2),
    "coeff_blob": (0, 1),
    "num_classes": (2, 3, 4),
    "background_label_id": (*[0] * 9, 1),
    "keep_top_k": (-1, 1, 2, 5),
    "sample_size": (1, 2, 64),
    "feat_stride": (4, 8, 16),
    "base_size": (4, 8, 16),
    "pre_nms_topn": (5, 20, 6000),
    "post_nms_topn": (1, 5, 300),
}
"""Lengths and places that a field may hold, by what its name begins with."""

FLOATS = (0.0, 0.5, 1.0, 2.0, -1.0, 0.1, 1.5, -0.5, 3.0, 0.75)
SMALL = (1e-5, 1e-3, 0.1)
POSITIVE = (0.5, 1.0, 2.0)

MASKS = ("Upsample", "MaxUnPool")
"""Types whose second bottom holds places of the top: the first is always there."""

NOT_DRAWN = ("InfogainLoss", "PSROIPooling")
"""Types that are drawn only if asked for: this Caffe has an older version of one, and none for a CPU of the other."""

MEANINGS = {
    Holds.PRIORS: "priors",
    Holds.OBJECTS: "objects",
    Holds.DETECTIONS: "detections",
    Holds.IMAGE_SIZES: "image sizes",
}
"""What a bottom holds -> the kind of its values. Such bottoms are not read by layers that take other numbers."""

SCORES = {"Proposal": 0, "DetectionOutput": 1, "MultiBoxLoss": 1}
"""The bottom whose numbers a layer sorts: equal ones are in no order, in Caffe."""

LEFT_OUT = (
    *("engine", "source", "filler", "param_str", "debug", "force", "root_folder", "mean_file", "weight_filler"),
    *("save_", "visualize", "name_size_file"),
)
"""Fields that change no number, or name files."""


class Nets:
    """Draws nets.

    Args:
        knows: types and fields of Caffe's, as its process says them.
        only: types to draw from; empty: all that both know.
        without: types to leave out.
    """

    def __init__(self, knows: Mapping[str, Any], only: Sequence[str] = (), without: Sequence[str] = ()) -> None:
        fields: dict[str, Mapping[str, list[str] | None]] = dict(knows["messages"])
        own = Message("LayerParameter").schema
        assert own is not None
        for name, theirs in knows.get("parameters", {}).items():  # a message may be called otherwise there
            if name in own.fields and (message := own.fields[name].message_name) is not None:
                fields[message] = knows["messages"][theirs]
        self.fields: Mapping[str, Mapping[str, list[str] | None]] = fields
        both = [name for name in knows["types"] if name in SIGNATURES and SIGNATURES[name].tops is not None]
        asked = [name for name in both if (name in only if only else name not in (*without, *NOT_DRAWN))]
        self.types = [name for name in asked if not _unsuited(SIGNATURES[name])]
        self.cases: dict[str, list[signature_cases.Case]] = {}
        for one in signature_cases.CASES:
            self.cases.setdefault(one.type, []).append(one)

    def draw(self, seed: int, number: int) -> Case:
        """The net of this number."""
        return _Net(self, random.Random(f"{seed}/{number}")).case(number)


def _unsuited(signature: Signature) -> bool:
    """Whether a type brings its own numbers, or writes files."""
    return signature.has(Trait.SOURCE) or signature.has(Trait.OTHERS) or signature.type in ("HDF5Output", "Python")


class _Net:
    def __init__(self, nets: Nets, rng: random.Random) -> None:
        self.nets, self.rng = nets, rng
        self.layers: list[Message] = []
        self.inputs: list[Message] = []
        self.values: dict[str, Values] = {}
        self.blobs: dict[str, Shape] = {}
        self.special: dict[str, Values] = {}
        self.shared: dict[tuple[str, tuple[Shape, ...]], str] = {}
        self.spread = rng.choice(("normal", "normal", "ties", "positive", "wide"))

    def case(self, number: int) -> Case:
        rng = self.rng
        phase = rng.choice(("TRAIN", "TEST"))
        wanted = rng.choice((1, 1, 2, 2, 3, 4, 6))
        for _ in range(wanted):
            if not self.add(rng.choice(self.nets.types)):
                break
            if self.layers and rng.random() < 0.5 and keeps_blobs(self.layers[-1].type):
                self.repeat(self.layers[-1])
        while not self.layers:  # what the first try found no bottoms for
            self.add(rng.choice(self.nets.types))
        return Case((*self.inputs, *self.layers), phase, self.values, number)

    # -- one layer ----------------------------------------------------------------------------------------------------

    def add(self, type_: str) -> bool:
        """Adds a layer of a type; False where nobody can say the shapes of its tops, so that the net ends."""
        rng = self.rng
        strict = rng.random() < 0.9
        for _ in range(40):
            state = dict(self.values), dict(self.blobs), list(self.inputs), dict(self.special)
            layer, bottoms = self.propose(type_)
            tops = self.tops(layer, bottoms)
            if tops is not None:
                self.settle(layer, bottoms, tops)
                return True
            if not strict and len(layer.bottom) == len(bottoms):
                layer = layer.copy(top=list(layer.top))
                self.layers.append(layer)
                return False
            self.values, self.blobs, self.inputs, self.special = state
        return True

    def repeat(self, first: Message) -> None:
        """Adds a layer like this one, which shares its blobs, in one of Caffe's ways and perhaps another field."""
        rng = self.rng
        again = copy.deepcopy(first)
        again.set("name", f"l{len(self.layers)}")
        shapes_ = [self.blobs[blob] for blob in first.bottom]
        if any(top in first.bottom for top in first.top):
            return
        again.set("bottom", [self.bottom(again, shapes_, k) for k in range(len(shapes_))])
        again.set("top", [f"{again.name}_{k}" for k in range(len(first.top))])
        for message in SIGNATURES[first.type].messages:
            if again.has(message) and "transpose" in getattr(again, message).schema.fields and rng.random() < 0.3:
                again.set(message, getattr(again, message).copy(transpose=not getattr(again, message).transpose))
        rule = SIGNATURES[first.type].blob_shapes
        tops = self.tops(again, shapes_)
        if tops is None or rule is None:
            return
        if not first.param:
            count = rng.randint(1, max(1, len(rule(first, shapes_))))
            first.set("param", [Message("ParamSpec", name=f"{first.name}_{j}") for j in range(count)])
        mode = rng.choice((None, None, "PERMISSIVE"))
        again.set("param", [one.copy(share_mode=mode) for one in first.param])
        self.layers.append(again)
        self.blobs |= dict(zip(again.top, tops, strict=True))

    def propose(self, type_: str) -> tuple[Message, list[Shape]]:
        """A layer with bottoms, and their shapes."""
        rng, signature = self.rng, SIGNATURES[type_]
        known = self.nets.cases.get(type_, [])
        name = f"l{len(self.layers)}"
        if known and rng.random() < 0.5:
            example = rng.choice(known)
            message, wanted = example.message, self.stretched(list(example.bottoms))
            layer = Message("LayerParameter", name=name, type=type_)
            for field, value in message.items():
                if field.endswith("_param") and field in self.nets.fields["LayerParameter"]:
                    layer.set(field, self.common(value))
            if rng.random() < 0.5:
                self.draw_fields(layer, signature, rng.choice((0.05, 0.15, 0.3)))
            count = example.tops
            if type_ == "DetectionEvaluate" and rng.random() < 0.9:  # objects are of class 1 and more
                layer.set("detection_evaluate_param", layer.detection_evaluate_param.copy(background_label_id=None))
        else:
            layer = Message("LayerParameter", name=name, type=type_)
            self.draw_fields(layer, signature, rng.choice((0.1, 0.2, 0.4)))
            least, most = signature.bottoms
            wanted = self.detected(layer) if rng.random() < 0.9 else []
            wanted = wanted or self.related(rng.randint(least, max(least, min(most, 3))), signature)
            count = rng.choice((1, 1, 1, 1, 2, 3)) if not signature.has(Trait.SINK) else 0
        bottoms = [self.bottom(layer, wanted, k) for k in range(len(wanted))]
        layer.set("bottom", bottoms)
        layer.set("top", [f"{name}_{k}" for k in range(count)])
        if rng.random() < 0.1:
            layer.set("loss_weight", [rng.choice((0.0, 0.5, 1.0, 2.0)) for _ in range(count)])
        return layer, [self.blobs[blob] for blob in bottoms]

    def tops(self, layer: Message, bottoms: Sequence[Shape]) -> list[Shape] | None:
        """The shapes of the tops; None where caffe-port refuses the layer. The number of its tops is put right."""
        signature = SIGNATURES[layer.type]
        try:
            found = signature.top_shapes(layer, bottoms)
            if len(found) != len(layer.top):
                layer.set("top", [f"{layer.name}_{k}" for k in range(len(found))])
                layer.set("loss_weight", None)
                found = signature.top_shapes(layer, bottoms)
                if len(found) != len(layer.top):
                    return None
            kind = class_of(layer)
            if kind is None or any(_size(shape) > 20000 or min(shape, default=0) < 0 for shape in found):
                return None
            kind.from_caffe(kind.own_message(layer), bottoms)
        except CaffePortError:
            return None
        except Exception:  # noqa: BLE001 - the comparison will meet it
            return None
        return found

    def settle(self, layer: Message, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> None:
        """Puts the layer into the net, perhaps in place, perhaps with blobs that others use too."""
        rng, names = self.rng, list(layer.top)
        for k, shape in enumerate(tops):
            if k < len(bottoms) and shape == bottoms[k] and rng.random() < 0.3 and layer.bottom[k] not in names:
                names[k] = layer.bottom[k]
        layer.set("top", names)
        signature = SIGNATURES[layer.type]
        if signature.blob_shapes is not None and rng.random() < 0.4:
            blobs = tuple(signature.blob_shapes(layer, bottoms).values())
            key = layer.type, blobs
            tag = self.shared.setdefault(key, layer.name) if blobs else ""
            first = rng.random() < 0.5
            layer.set("param", [Message("ParamSpec", name=f"{tag}_{j}") for j in range(1 if first else len(blobs))])
        if layer.type == "MultiBoxLoss" and rng.random() < 0.8:
            self.learn(layer)
        self.layers.append(layer)
        self.blobs |= dict(zip(names, tops, strict=True))
        for name in names:  # what is overwritten is no label any more, and no input to be had again
            self.special.pop(name, None)

    def learn(self, loss: Message) -> None:
        """Puts a Scale before each of the first two bottoms of a loss that has no gradient where nothing is learned."""
        for k, bottom in enumerate(loss.bottom[:2]):
            p = Message("ScaleParameter", axis=0, num_axes=-1)
            top = f"{loss.name}s{k}"
            scale = Message("LayerParameter", name=top, type="Scale", bottom=[bottom], top=[top], scale_param=p)
            self.layers.append(scale)
            self.blobs[top] = self.blobs[bottom]
            loss.bottom[k] = top

    # -- bottoms ------------------------------------------------------------------------------------------------------

    def shape(self) -> Shape:
        """A shape of 0 to 5 axes, mostly images; seldom with a length of 0."""
        rng = self.rng
        axes = rng.choice((0, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 5))
        lengths = [rng.choice((1, 2, 2, 3)), rng.choice((1, 2, 3, 4, 4, 6)), *[rng.randint(1, 9) for _ in range(3)]]
        found = lengths[:axes]
        if found and rng.random() < 0.02:
            found[rng.randrange(axes)] = 0
        return tuple(found)

    def related(self, count: int, signature: Signature) -> list[Shape]:
        """Shapes for the bottoms of a layer: of a blob that there is, or of a new one, and of what fits it."""
        rng = self.rng
        if not count:
            return []
        old = [shape for blob, shape in self.blobs.items() if self.free(blob)]
        first = rng.choice(old) if old and rng.random() < 0.75 else self.shape()
        found = [first]
        while len(found) < count:
            found.append(self.relative(first))
        return found

    def detected(self, layer: Message) -> list[Shape]:
        """Bottoms of a layer of detection that fit each other; none for other types."""
        rng, type_ = self.rng, layer.type
        images, boxes, found = rng.randint(1, 3), rng.randint(1, 6), rng.randint(1, 8)
        if type_ == "DetectionEvaluate":
            return [(1, 1, found, 7), (1, 1, boxes, 8)]
        if type_ == "Proposal":
            p = layer.proposal_param.copy(
                ratio=rng.choice(([0.5, 1, 2], [1], [0.5, 2])), scale=rng.choice(([1, 2], [4]))
            )
            layer.set("proposal_param", p.copy(min_size=p.min_size % 8))
            anchors, plane = len(p.ratio) * len(p.scale), (rng.randint(1, 4), rng.randint(2, 5))
            return [(images, 2 * anchors, *plane), (images, 4 * anchors, *plane), (images, 3)]
        if type_ not in ("DetectionOutput", "MultiBoxLoss"):
            return []
        name = "detection_output_param" if type_ == "DetectionOutput" else "multibox_loss_param"
        p = getattr(layer, name).copy(num_classes=rng.choice((2, 3, 4)))
        layer.set(name, p)
        each = 4 * found * (1 if p.share_location else p.num_classes)
        wanted = [(images, each), (images, found * p.num_classes), (1, 2, 4 * found)]
        if type_ == "MultiBoxLoss":
            layer.set("propagate_down", [True, True, False, False])
            wanted.append((1, 1, boxes, 8))
        return wanted

    def relative(self, x: Shape) -> Shape:
        """A shape that has to do with x."""
        rng = self.rng
        axes, axis = len(x), rng.randrange(max(1, len(x)))
        length = rng.randint(1, 5)
        return rng.choice(
            (
                x,
                x,
                x,
                x[: rng.randint(0, axes)],
                x[:1],
                x[axis : rng.randint(axis, axes)],
                (*x[:axis], *x[axis + 1 :]),
                (*x[:1], *x[2:]),
                (*x[:1], 1, *x[2:]),
                (*x[:axis], length, *x[axis + 1 :]),
                (length,),
                (1, 1, *x[1:2], *x[1:2]),
                (1, *x[1:2], length),
                (length, 5),
                tuple(max(1, n - rng.randint(0, 2)) for n in x),
                self.shape(),
            )
        )

    def stretched(self, bottoms: list[Shape]) -> list[Shape]:
        """The shapes of an example with some lengths changed: equal ones stay equal. Perhaps an axis more or less."""
        rng = self.rng
        more = rng.random()
        if more < 0.1:
            bottoms = [shape[:-1] if len(shape) > 2 else shape for shape in bottoms]
        elif more < 0.2:
            bottoms = [(*shape, 5) if len(shape) > 2 else shape for shape in bottoms]
        if rng.random() < 0.4:
            return bottoms
        lengths = {n for shape in bottoms for n in shape}
        other = {n: rng.choice((n, n, max(1, n - 1), n + 1, rng.randint(1, 9))) if n < 40 else n for n in lengths}
        return [tuple(other[n] for n in shape) for shape in bottoms]

    def free(self, blob: str) -> bool:
        """Whether a blob holds any numbers."""
        return blob not in self.special

    def bottom(self, layer: Message, wanted: Sequence[Shape], k: int) -> str:
        """A blob of this shape that holds what the layer takes: one that there is, or a new input."""
        rng, shape = self.rng, wanted[k]
        spec = LayerSpec(layer.name, layer.type, (), (), (), layer, "")
        what = holds(layer.type, k)
        values = Values(rng.choice((self.spread, self.spread, "normal", "zeros")) if k else self.spread)
        if k and layer.type in MASKS:
            values = Values("integers", 1)
        elif what is Holds.BOXES:
            values = Values("boxes", wanted[0][0] if wanted[0] else 1)
        elif what in MEANINGS:
            p = SIGNATURES[layer.type].parameters(layer) if SIGNATURES[layer.type].messages else layer
            classes = p.num_classes if p.schema is not None and "num_classes" in p.schema.fields else 0
            values = Values(MEANINGS[what], wanted[0][0] if layer.type == "MultiBoxLoss" and wanted[0] else 2, classes)
        elif k == SCORES.get(layer.type):
            values = Values("scores")
        else:
            try:
                below = shapes.integers_below(spec, wanted, k)
            except Exception:  # noqa: BLE001 - the shapes do not fit, which may be wanted
                below = 1
            if below is not None:
                values = Values("integers", below, self.ignored(layer, wanted))
        old = [blob for blob, there in self.blobs.items() if there == shape]
        old = [b for b in old if (self.values.get(b) == values if values.kind in SPECIAL else self.free(b))]
        if old and rng.random() < 0.8:
            return rng.choice(old[-3:])
        return self.new_input(shape, values)

    def ignored(self, layer: Message, wanted: Sequence[Shape]) -> int | None:
        """The label that a layer ignores, if it says one."""
        kind = class_of(layer)
        try:
            return kind.from_caffe(kind.own_message(layer), wanted).get("ignore_label") if kind else None
        except Exception:  # noqa: BLE001 - the shapes do not fit, which may be wanted
            return None

    def new_input(self, shape: Shape, values: Values) -> str:
        blob = f"x{len(self.inputs)}"
        self.inputs.append(input_layer(blob, shape))
        self.values[blob] = values
        self.blobs[blob] = shape
        if values.kind in SPECIAL:
            self.special[blob] = values
        return blob

    # -- parameters ---------------------------------------------------------------------------------------------------

    def common(self, message: Message) -> Message:
        """A message without the fields and values that Caffe's schema lacks."""
        assert message.schema is not None
        known = self.nets.fields.get(message.schema.name, {})
        found = Message(message.schema)
        for name, value in message.items():
            if name in known and not name.endswith("filler"):
                values = known[name]
                if isinstance(value, Message):
                    value = self.common(value)
                if values is None or value in values:
                    found.set(name, value)
        return found

    def draw_fields(self, layer: Message, signature: Signature, chance: float) -> None:
        """Draws some fields of the messages that the record names."""
        names = [*signature.messages, *signature.also]
        assert layer.schema is not None
        for name in dict.fromkeys(names):
            field = layer.schema.fields.get(name)
            if field is None or name not in self.nets.fields["LayerParameter"] or field.message_name is None:
                continue
            old = layer._fields.get(name)
            message = old.copy() if old is not None else Message(field.message_name)
            self.draw_message(message, chance if name in signature.messages else 0.4)
            if message.items() or self.rng.random() < 0.2:
                layer.set(name, message)

    def draw_message(self, message: Message, chance: float) -> None:
        assert message.schema is not None
        known = self.nets.fields.get(message.schema.name, {})
        needed = ("num_output", "dim", "kernel_size", "tiles", "input_dim", "min", "max", "pyramid_height", "order")
        for name, field in message.schema.fields.items():
            if name not in known or any(part in name for part in LEFT_OUT):
                continue
            if self.rng.random() < (0.9 if name in needed else chance):
                value = self.draw_value(field, known[name])
                if value is not None:
                    message.set(name, value)
        self.pair(message)

    def pair(self, message: Message) -> None:
        """Mostly makes two of kernel_h and kernel_w, and their like, and takes away what says the same."""
        assert message.schema is not None
        fields, rng = message.schema.fields, self.rng
        for name in [name for name in fields if name.endswith("_h") and f"{name[:-2]}_w" in fields]:
            base = name[:-2]
            both = [f"{base}_h", f"{base}_w"]
            if not any(map(message.has, both)) or rng.random() < 0.1:
                continue
            whole = [one for one in (base, f"{base}_size") if one in fields]
            if rng.random() < 0.4:
                for one in both:
                    message.set(one, None)
                if base == "kernel" and not any(map(message.has, whole)):
                    message.set(whole[0], [2] if fields[whole[0]].repeated else 2)
                continue
            for one in both:
                message.set(one, self.draw_one(fields[one], None) if not message.has(one) else getattr(message, one))
            for one in whole:
                message.set(one, None)

    def draw_value(self, field: Field, allowed: list[str] | None) -> Any:
        rng = self.rng
        if field.repeated:
            if field.name == "order":
                return rng.sample(range(5), rng.randint(1, 5)) if rng.random() < 0.3 else rng.sample(range(4), 4)
            count = rng.choice((1, 1, 1, 2, 2, 3, 4))
            found = [self.draw_one(field, allowed) for _ in range(count)]
            found = [one for one in found if one is not None]
            return sorted(found) if field.name == "slice_point" else found
        return self.draw_one(field, allowed)

    def draw_one(self, field: Field, allowed: list[str] | None) -> Any:
        rng = self.rng
        if field.message_name is not None:
            inner = Message(field.message_name)
            self.draw_message(inner, 0.5)
            return inner
        if field.kind == "bool":
            return rng.random() < 0.5
        if field.kind == "enum":
            values = [name for name in field.values or () if allowed is None or name in allowed]
            return rng.choice(values) if values else None
        if field.kind in ("float", "double"):
            if "eps" in field.name:
                return rng.choice(SMALL)
            if field.name in ("k", "alpha"):  # LRN divides by a power of k and alpha times something
                return rng.choice(POSITIVE)
            return rng.choice((field.default or 0.0, *FLOATS))
        if field.kind in ("int32", "uint32", "int64", "uint64"):
            choices = next((values for start, values in INTEGERS.items() if field.name.startswith(start)), range(5))
            value = rng.choice(list(choices))
            return max(0, value) if field.kind.startswith("u") else value
        return None


def _size(shape: Shape) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
