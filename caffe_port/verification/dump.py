"""Records a Trace with a reference: OpenCV, the NumPy formulas, or Caffe itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from caffe_port.api import Prototxt, Stored
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.typing import PathLike
from caffe_port.verification.references.reference import Reference, record
from caffe_port.verification.references.trace import Trace
from caffe_port.verification.subject import Input, find_reference, prepare


def dump(
    output: PathLike,
    prototxt: Prototxt | None = None,
    weights: Stored | None = None,
    *,
    by: str | Reference = "opencv",
    input: Input | Mapping[str, Input] | None = None,  # noqa: A002  the word of the command line
    seed: int = 0,
    preprocess: Preprocessing | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    keep_loss: bool = False,
    ignore_fields: Collection[str] = (),
) -> Trace:
    """Records what a reference computes and writes it as .npz, for ``verify --against``.

    Args:
        output: the file to write.
        by: ``"opencv"``, ``"numpy"``, ``"caffe"`` or a Reference.
        prototxt, weights, input, seed, preprocess, input_shapes, keep_loss, ignore_fields: as for
            :func:`caffe_port.verify`.

    Raises:
        CaffePortError: bad input, or the reference cannot run the net.
    """
    reference = find_reference(by)
    subject = prepare(
        prototxt,
        weights,
        input=input,
        seed=seed,
        preprocess=preprocess,
        input_shapes=input_shapes,
        keep_loss=keep_loss,
        ignore_fields=ignore_fields,
    )
    words = {f"input {blob}": how for blob, how in subject.words.items()}
    trace = record(reference, subject.case, {**subject.provenance, **words})
    trace.save(output)
    return trace
