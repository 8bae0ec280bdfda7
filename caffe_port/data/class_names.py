"""Names of the classes, by label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.formats import prototxt
from caffe_port.formats.message import Message
from caffe_port.spec import LayerSpec
from caffe_port.storage.files import find, read_bytes

_DIGITS = tuple("0123456789")
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

OF_DATA_SET: dict[str, tuple[str, ...]] = {
    "mnist": _DIGITS,
    "svhn": _DIGITS,
    "cifar10": tuple(_CIFAR10.split()),
    "cifar100": tuple(_CIFAR100.split()),
}
"""Data set of the registry -> names."""

_VOC = """
    background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
    pottedplant sheep sofa train tvmonitor
"""
VOC = tuple(_VOC.split())
"""The classes of PASCAL VOC, by the labels that SSD gives them."""

_MAX_BYTES = 16 << 20
_MAX_LABEL = 1 << 16


def read(path: str | Path) -> tuple[str, ...]:
    """Reads a file of labels: one name per line, as in Caffe's synset_words.txt, whose WordNet numbers are dropped; or
    SSD's labelmap.prototxt.

    Raises:
        CaffePortError: it cannot be read, is not text, or contains no name.
    """
    text = _text(path)
    if _is_map(text):
        items = {item.label: item.display_name or item.name for item in _items(text, str(path))}
        return tuple(items.get(label, str(label)) for label in range(max(items) + 1))
    names = [line.strip() for line in text.splitlines()]
    while names and not names[-1]:
        names.pop()
    if not any(names) or "\0" in text:
        raise CaffePortError("contains no names; expected one class name per line", str(path))
    if all(re.match(r"n\d{8} ", name) for name in names):
        names = [name.partition(" ")[2] for name in names]
    return tuple(names)


def label_map(path: str | Path | None) -> dict[str, int]:
    """The labels of the classes by name, as annotations of PASCAL VOC name them: of SSD's labelmap.prototxt (names and
    display names), or of a file with one name per line.

    Args:
        path: the file; None: the classes of PASCAL VOC, whose background has label 0.

    Raises:
        CaffePortError: as for :func:`read`.
    """
    if path is None:
        return {name: label for label, name in enumerate(VOC)}
    text = _text(path)
    if not _is_map(text):
        return {name: label for label, name in enumerate(read(path))}
    items = _items(text, str(path))
    return {item.display_name: item.label for item in items if item.display_name} | {
        item.name: item.label for item in items
    }


def file_of(layers: Sequence[LayerSpec]) -> Path | None:
    """The label_map_file that a layer of an SSD names, if it exists."""
    for layer in layers:
        p = layer.param
        names = [p.annotated_data_param.label_map_file, p.detection_output_param.save_output_param.label_map_file]
        if (found := next((one for name in names if (one := find(name, layer.folder)) is not None), None)) is not None:
            return found
    return None


def _is_map(text: str) -> bool:
    return re.match(r"(\s|#.*\n)*item\s*[:{]", text) is not None


def _items(text: str, path: str) -> list[Message]:
    items: list[Message] = list(prototxt.parse(text, "LabelMap", path).item)
    for item in items:
        if not 0 <= item.label <= _MAX_LABEL:
            raise ParseError(f"label {item.label} of '{item.name}' is not in 0..{_MAX_LABEL}", path)
    return items


def _text(path: str | Path) -> str:
    try:
        return read_bytes(path, _MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise CaffePortError("is not text; expected one class name per line", str(path)) from None
