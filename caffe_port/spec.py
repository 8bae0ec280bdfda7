"""The specification of a net in one phase, before any module is built: immutable, with the producer of every blob.

:mod:`caffe_port.definition` makes it from a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from caffe_port.errors import SpecError, first_line
from caffe_port.formats.message import Message, not_finite

Producer = tuple[str, int]
"""The producer of a blob: (layer name, top index)."""


def top_name(layer: str, top: int) -> str:
    """The name of a top in files and messages: the layer's, with the index from the second on."""
    return f"{layer}:{top}" if top else layer


@dataclass(frozen=True)
class LayerSpec:
    """One layer of one phase.

    Attributes:
        name: unique within the net.
        bottoms, tops: blob names as written; an in-place layer has the same name in both.
        sources: the producer of each bottom.
        param: the LayerParameter, V2.
        where: ``file:line`` for messages.
        is_input: the tops come from outside: they are inputs of the net.
        implied: the parameters in ``param`` that the file does not have, and that other layers imply.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    producers: tuple[Producer, ...]
    param: Message = dataclasses.field(repr=False)
    where: str = dataclasses.field(repr=False)
    is_input: bool = False
    implied: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of the file that names this layer, from which the files it names are looked for."""
        return Path(self.where.rpartition(":")[0] or self.where).parent

    def error(self, what: str, hint: str = "") -> SpecError:
        """A SpecError that names this layer and its line."""
        return SpecError(f"layer '{self.name}' ({self.type}): {what}", self.where, hint)

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """Errors about the values of the layer's fields (a NaN in place of a size) become errors that name it."""
        try:
            yield
        except SpecError as error:
            raise self.error(error.what, error.hint) from None
        except (ArithmeticError, ValueError) as error:
            what = not_finite(self.param) or f"the values of its fields make no layer: {first_line(error)}"
            raise self.error(what) from None


@dataclass(frozen=True)
class Unfollowed:
    """A field that is set and that no code follows.

    Attributes:
        layer, type: the layer; empty for a field of the net itself.
        field: its name; a number where a binary file names none.
        message: the message type.
        where: ``file:line``.
        effect, words: what it does; see :mod:`caffe_port.formats.unfollowed`.
        known: whether the schema has the field.
    """

    layer: str
    type: str
    field: str
    message: str
    where: str
    effect: str
    words: str
    known: bool


@dataclass(frozen=True)
class NetSpec:
    """A net in one phase.

    Attributes:
        notes: warnings for the user.
        targets: blobs that only dropped losses read, to compare with (an autoencoder's input): no outputs.
        full: the net before the deploy view left out what only labels need; None if it left out nothing.
        unfollowed: fields that are set and that no code follows.
        ignored: names of the fields that the user goes without.
        borrowed: layers of another phase or stage, which make what this phase lacks.
    """

    name: str
    phase: str
    layers: tuple[LayerSpec, ...]
    path: str
    notes: tuple[str, ...] = ()
    targets: frozenset[Producer] = frozenset()
    full: NetSpec | None = dataclasses.field(default=None, repr=False, compare=False)
    unfollowed: tuple[Unfollowed, ...] = dataclasses.field(default=(), repr=False)
    ignored: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()

    @functools.cached_property
    def by_name(self) -> dict[str, LayerSpec]:
        return {layer.name: layer for layer in self.layers}

    @functools.cached_property
    def inputs(self) -> tuple[tuple[str, Producer], ...]:
        """(blob name, producer) of the tops that come from outside, in the file's order."""
        return tuple(
            (top, (layer.name, k)) for layer in self.layers if layer.is_input for k, top in enumerate(layer.tops)
        )

    @functools.cached_property
    def outputs(self) -> tuple[tuple[str, Producer], ...]:
        """(blob name, producer) of the tops that no layer reads, by blob name as Caffe orders them; inputs left out."""
        read = self.targets.union(producer for layer in self.layers for producer in layer.producers)
        found = [
            (top, (layer.name, k))
            for layer in self.layers
            if not layer.is_input
            for k, top in enumerate(layer.tops)
            if (layer.name, k) not in read
        ]
        return tuple(sorted(found))
