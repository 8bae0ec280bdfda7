"""Names of the classes, by label."""

from __future__ import annotations

import re
from pathlib import Path

from caffe_port.errors import CaffePortError
from caffe_port.storage.files import read_bytes

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

_MAX_BYTES = 16 << 20


def read(path: str | Path) -> tuple[str, ...]:
    """Reads a file of labels: one name per line, as in Caffe's synset_words.txt, whose WordNet numbers are dropped.

    Raises:
        CaffePortError: it cannot be read, is not text, or contains no name.
    """
    try:
        text = read_bytes(path, _MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise CaffePortError("is not text; expected one class name per line", str(path)) from None
    names = [line.strip() for line in text.splitlines()]
    while names and not names[-1]:
        names.pop()
    if not any(names) or "\0" in text:
        raise CaffePortError("contains no names; expected one class name per line", str(path))
    if all(re.match(r"n\d{8} ", name) for name in names):
        names = [name.partition(" ")[2] for name in names]
    return tuple(names)
