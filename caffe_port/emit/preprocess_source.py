"""The part of model.py that makes a net's input of an image: ``preprocess``, and the names of the classes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from caffe_port.data.preprocessing import MEAN_IMAGE, Preprocessing
from caffe_port.emit.copied_classes import Import
from caffe_port.emit.forward_method import wrap
from caffe_port.errors import CaffePortError
from caffe_port.storage.output_folder import MEAN
from caffe_port.typing import Shape


def fitted(plan: Preprocessing, shape: Shape) -> Preprocessing | None:
    """The preprocessing for an image of any size; None if the input is not an image, or the mean is not known."""
    if len(shape) != 4 or shape[1] not in (1, 3) or plan.lacks_mean_image:
        return None
    try:
        return plan.for_input(*shape[1:])
    except CaffePortError:
        return None


def lines(plan: Preprocessing, shape: Shape, classes: Sequence[str]) -> tuple[list[str], set[Import]]:
    """The source and its imports.

    Args:
        plan: the result of :func:`fitted`.
        shape: (N, C, H, W) of the net's input.
        classes: names by label; empty if unknown.
    """
    height, width = plan.resize or shape[2:]
    gray = plan.channel_order == "GRAY"
    imports = {Import("torch", None, "torch"), Import("torch.nn.functional", None, "F"), Import("typing", "Any", "Any")}
    text: list[str] = []
    if classes:
        text += ["", "", *wrap(f"CLASSES = [{', '.join(map(repr, classes))}]", 0)]
    order = "as gray values" if gray else f"in {plan.channel_order} order" if plan.channel_order else "in RGB order"
    steps = [f"resized to {width}x{height} (bilinear)", order]
    if plan.mean != 0:
        steps.append(f"minus the mean image in {MEAN}" if plan.mean == MEAN_IMAGE else f"minus {_shown(plan.mean)}")
    steps += [f"times {plan.scale!r}"] if plan.scale != 1 else []
    steps += [f"divided by {_shown(plan.std)}"] if plan.std != 1 else []
    steps += [f"cropped to {shape[3]}x{shape[2]} at the center"] if plan.window else []
    kinds = "(H, W)" if gray else "(H, W, 3) in RGB order"
    text += [
        "",
        "",
        "def preprocess(image: Any) -> Tensor:",
        f'    """The net\'s input, float32 {(1, *shape[1:])}, of a PIL image or a uint8 array {kinds}, 0..255.',
        "",
        *textwrap.wrap(f"The image is {', '.join(steps)}.", 100, initial_indent="    ", subsequent_indent="    "),
        '    """',
        '    if hasattr(image, "convert"):  # PIL',
        f'        image = image.convert("{"L" if gray else "RGB"}")',
        "        x = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)",
        "        x = x.view(image.height, image.width, -1)",
        "    else:",
        "        x = torch.tensor(image)",
        f"    x = x.reshape(*x.shape[:2], {shape[1]}).permute(2, 0, 1)[None].float()",
    ]
    if plan.channel_order == "BGR":
        text.append("    x = x.flip(1)")
    text.append(f'    x = F.interpolate(x, ({height}, {width}), mode="bilinear").round()')
    if plan.mean == MEAN_IMAGE:
        imports |= {Import("numpy", None, "numpy"), Import("pathlib", "Path", "Path")}
        text.append(f'    x = x - torch.from_numpy(numpy.load(Path(__file__).with_name("{MEAN}")))')
    elif plan.mean != 0:
        text.append(f"    x = x - {_tensor(plan.mean)}")
    if plan.scale != 1:
        text.append(f"    x = x * {plan.scale!r}")
    if plan.std != 1:
        text.append(f"    x = x / {_tensor(plan.std)}")
    if plan.window:
        top, left = (height - plan.window[0]) // 2, (width - plan.window[1]) // 2
        text.append(f"    x = x[:, :, {top}:{top + plan.window[0]}, {left}:{left + plan.window[1]}]")
    text.append("    return x")
    return text, imports


def _shown(value: float | tuple[float, ...] | str) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, tuple) else str(value)


def _tensor(value: float | tuple[float, ...] | str) -> str:
    if isinstance(value, tuple):
        return f"torch.tensor([{', '.join(map(repr, value))}]).view(-1, 1, 1)"
    return str(value)
