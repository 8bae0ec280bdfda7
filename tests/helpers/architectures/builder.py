"""Prototxt text from short Python: one method for each layer that the architectures use repeatedly.

The fillers are chosen so that mistakes show: no bias is zero, no scale is one.
"""

from __future__ import annotations

import math
from typing import Any

MSRA = {"type": "msra"}
AROUND_ZERO = {"type": "gaussian", "std": 0.1}
AROUND_ONE = {"type": "gaussian", "mean": 1.0, "std": 0.1}

Fields = dict[str, Any]


def text(fields: Fields) -> str:
    """Fields in protobuf's text format: a dict is a message, a list a repeated field, ``MAX`` an enum value."""
    return " ".join(
        f"{name} {{ {text(value)} }}" if isinstance(value, dict) else f"{name}: {_scalar(value)}"
        for name, values in fields.items()
        for value in (values if isinstance(values, (list, tuple)) else [values])
        if value is not None
    )


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) and not value.isupper() else str(value)


class Prototxt:
    """Builds a net. Methods add a layer and return its top, or a tuple of its tops.

    Args:
        name: the name of the net.
        width: the factor for every number of channels, unless it is marked exact.
        deploy: omit layers of phase TRAIN, and all losses.
    """

    def __init__(self, name: str, width: float = 1, deploy: bool = False) -> None:
        self.lines = [f'name: "{name}"']
        self.width, self.deploy = width, deploy
        self.phase: str | None = None

    def only(self, phase: str | None) -> None:
        """Sets the phase of all further layers; None: both phases."""
        self.phase = phase

    def __str__(self) -> str:
        return "\n".join(self.lines) + "\n"

    def channels(self, count: int) -> int:
        return math.ceil(count * self.width)

    def layer(
        self, kind: str, name: str, bottoms: str | list[str], tops: Any = None, phase: Any = None, **fields: Any
    ) -> Any:
        phase = phase or self.phase
        bottoms, tops = [[x] if isinstance(x, str) else list(x) for x in (bottoms, name if tops is None else tops)]
        if not (self.deploy and (phase == "TRAIN" or kind.endswith("Loss"))):
            ends = [f'bottom: "{b}"' for b in bottoms] + [f'top: "{t}"' for t in tops]
            rules = {"include": {"phase": phase}} if phase else {}
            self.lines.append(f'layer {{ name: "{name}" type: "{kind}" {" ".join(ends)} {text(rules | fields)} }}')
        return tops[0] if len(tops) == 1 else tuple(tops)

    def input(self, name: str, *shape: int, phase: str | None = None) -> str:
        return self.layer("Input", name, [], phase=phase, input_param={"shape": {"dim": shape}})

    # -- layers with weights --------------------------------------------------------------------------------------

    def conv(
        self,
        name: str,
        bottom: str,
        count: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        pad: int | tuple[int, int] = 0,
        bias: bool = True,
        exact: bool = False,
        kind: str = "Convolution",
        weight_filler: Fields = MSRA,
        param: Any = None,
        **more: Any,
    ) -> str:
        """``kernel`` and ``pad`` are one number or (vertical, horizontal)."""
        p: Fields = {"num_output": count if exact else self.channels(count), "bias_term": None if bias else False}
        for field, value in (("kernel", kernel), ("pad", pad)):
            if isinstance(value, tuple):
                p |= {f"{field}_h": value[0], f"{field}_w": value[1]}
            else:
                p["kernel_size" if field == "kernel" else field] = value or None
        p |= {"stride": stride if stride > 1 else None, **more, "weight_filler": weight_filler}
        p |= {"bias_filler": AROUND_ZERO} if bias else {}
        return self.layer(kind, name, bottom, param=param, convolution_param=p)

    def depthwise(self, name: str, bottom: str, count: int, stride: int = 1, kind: str = "Convolution") -> str:
        group = self.channels(count)
        return self.conv(name, bottom, count, 3, stride, 1, bias=False, kind=kind, group=group)

    def fc(
        self,
        name: str,
        bottom: str,
        count: int,
        exact: bool = False,
        axis: int | None = None,
        weight_filler: Fields | None = None,
        param: Any = None,
    ) -> str:
        p = {"num_output": count if exact else self.channels(count), "axis": axis}
        p |= {"weight_filler": weight_filler or {"type": "xavier"}, "bias_filler": AROUND_ZERO}
        return self.layer("InnerProduct", name, bottom, param=param, inner_product_param=p)

    def bn(self, bottom: str, name: str | None = None, eps: float | None = None) -> str:
        """BatchNorm and Scale, in place unless ``name`` is given."""
        top = name or bottom
        self.layer("BatchNorm", f"{top}/bn", bottom, top, batch_norm_param={"eps": eps})
        scale = {"filler": AROUND_ONE, "bias_term": True, "bias_filler": AROUND_ZERO}
        return self.layer("Scale", f"{top}/scale", top, top, scale_param=scale)

    # -- layers without -------------------------------------------------------------------------------------------

    def relu(self, bottom: str, slope: float | None = None, kind: str = "ReLU") -> str:
        return self.layer(kind, f"{bottom}/relu", bottom, bottom, relu_param={"negative_slope": slope} if slope else [])

    def conv_relu(self, name: str, bottom: str, *args: Any, **more: Any) -> str:
        return self.relu(self.conv(name, bottom, *args, **more))

    def conv_bn(self, name: str, bottom: str, *args: Any, eps: float | None = None, **more: Any) -> str:
        return self.bn(self.conv(name, bottom, *args, bias=False, **more), eps=eps)

    def conv_bn_relu(self, name: str, bottom: str, *args: Any, slope: float | None = None, **more: Any) -> str:
        return self.relu(self.conv_bn(name, bottom, *args, **more), slope)

    def pool(
        self,
        name: str,
        bottom: str,
        kernel: int | tuple[int, int] = 0,
        stride: Any = None,
        pad: int | None = None,
        how: str = "MAX",
        tops: Any = None,
    ) -> Any:
        """Without a kernel the whole image."""
        p: Fields = {"pool": how, "pad": pad}
        if isinstance(kernel, tuple):
            p |= {"kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": stride[0], "stride_w": stride[1]}
        else:
            p |= {"kernel_size": kernel, "stride": stride} if kernel else {"global_pooling": True}
        return self.layer("Pooling", name, bottom, tops, pooling_param=p)

    def lrn(self, name: str, bottom: str) -> str:
        return self.layer("LRN", name, bottom, lrn_param={"local_size": 5, "alpha": 0.0001, "beta": 0.75})

    def dropout(self, bottom: str, ratio: float = 0.5) -> str:
        return self.layer("Dropout", f"{bottom}/drop", bottom, bottom, dropout_param={"dropout_ratio": ratio})

    def concat(self, name: str, *bottoms: str, axis: int | None = None) -> str:
        return self.layer("Concat", name, list(bottoms), concat_param={"axis": axis})

    def add(self, name: str, *bottoms: str) -> str:
        return self.layer("Eltwise", name, list(bottoms), eltwise_param={"operation": "SUM"})

    def crop(self, name: str, bottom: str, like: str, offset: int | None = None) -> str:
        return self.layer("Crop", name, [bottom, like], crop_param={"axis": 2, "offset": offset})

    def reshape(self, name: str, bottom: str, *dims: int) -> str:
        return self.layer("Reshape", name, bottom, reshape_param={"shape": {"dim": dims}})

    # -- ends -----------------------------------------------------------------------------------------------------

    def softmax(self, name: str, bottom: str, axis: int | None = None, phase: str | None = "TEST") -> str:
        return self.layer("Softmax", name, bottom, phase=phase, softmax_param={"axis": axis})

    def softmax_loss(
        self,
        name: str,
        bottom: str,
        label: str,
        weight: float | None = None,
        axis: int | None = None,
        ignore: int | None = None,
    ) -> str:
        p = {"loss_param": {"ignore_label": ignore}} if ignore is not None else {}
        return self.layer(
            "SoftmaxWithLoss",
            name,
            [bottom, label],
            phase="TRAIN",
            loss_weight=weight,
            softmax_param={"axis": axis},
            **p,
        )

    def classified(self, scores: str, batch: int) -> None:
        """Probabilities in TEST, the loss against a label in TRAIN."""
        self.softmax("prob", scores)
        self.softmax_loss("loss", scores, self.input("label", batch, phase="TRAIN"))
