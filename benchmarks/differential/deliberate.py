"""What differs on purpose, with the reason; docs/from-caffe-to-pytorch.md tells users the same."""

from __future__ import annotations

import re
from collections.abc import Callable

from case import Case
from verdict import Verdict

from caffe_port.signatures.signature import Trait, has, keeps_blobs

NO_BACKWARD = ("Proposal", "MaxUnPool", "DetectionOutput", "DetectionEvaluate")
"""Further types whose Backward is empty in the Caffe of this reference."""

GROWING = ("DetectionOutput", "Proposal")
"""Types whose tops are as long as what they find."""

OLDER = {
    "Accuracy": "ties and nets without labels: this Caffe has the rules of before 2017",
    "InfogainLoss": "this Caffe's has no softmax, as before 2017",
    "SigmoidCrossEntropyLoss": "this Caffe's ignores loss_param, as before 2017",
}
"""Types of which the reference has an older version than Caffe 1.0."""

FORKS = {
    "takes at least 2 bottom blob(s) as input. (layer.hpp)": "Eltwise of one bottom: FlowNet 2 has it",
    "SmoothL1Loss Layer takes": "SmoothL1Loss with inside and outside weights: Faster R-CNN has it",
    "Normalize Layer produces": "Normalize with norms as a second top: NormFace has it",
    "Not Implemented Yet (pooling_layer.cpp)": "STOCHASTIC pooling: Caffe has it for GPUs only",
    "Not Implemented Yet (psroi_pooling_layer.cpp)": "PSROIPooling: Caffe has it for GPUs only",
    "loss_weight must be unspecified or specified once per top blob": "SoftmaxWithLoss with probabilities: Caffe trips "
    "over its own check of the softmax inside",
    "Reshape Layer does not allow in-place computation": "Reshape in place: LocNet's Caffe allows it",
    "DetectionOutput Layer takes at most": "DetectionOutput of five bottoms: RefineDet has it",
    "Found background label": "objects of the background: `train` refuses them as it reads them",
    "do_neg_mining_ ==": "do_neg_mining: false alone: SSD before mining_type",
    "Currently only support negative mining if share_location": "do_neg_mining: false alone: SSD before mining_type",
    'Non-repeated field "': "this Caffe's schema has one value where Caffe 1.0 takes several",
}
"""Words of a refusal -> what another Caffe or a GPU runs."""


STRICTER = {
    "labels for": "HingeLoss with more labels than items: Caffe reads the first of them",
    "values for": "ContrastiveLoss with another number of labels: Caffe reads beyond them, or the first",
    "no spatial axes": "a convolution without spatial axes: in Caffe, a product with the channels",
    "squared does not divide": "PixelShuffle of channels that do not come out even: this Caffe drops the rest",
    "divides by": "BilinearInterpolate that divides by zero",
    "min_size is missing": "PriorBox of a min_size below 1: Caffe takes it for 0",
    "must be positive": "PriorBox of a negative aspect_ratio: Caffe takes its root",
    "must all be negative": "Pad of negative and other pads: this Caffe writes outside of the top",
    "stride must be at least": "Deconvolution of one place with half a stride: Caffe takes the other for 0",
    "dropout_ratio": "Dropout of a ratio that Caffe's debug builds refuse",
    "differ in shape": "bottoms of Eltwise that hold as many numbers: this Caffe asks for no more, Caffe 1.0 does",
    "gives an empty output": "a kernel larger than the image by less than the stride: Caffe rounds -1 / 2 to a window",
    "expected a bottom (N, C, H, W)": "layers of forks, of images, that this Caffe runs on fewer axes",
    "the fourth bottom is an image": "DetectionOutput of four bottoms, the last of which is no image",
    "need scores (N, ": "Proposal of other scores or corrections: Caffe reads beyond them",
    "the priors have shape": "MultiBoxLoss, DetectionOutput of other priors: Caffe reads beyond them",
    "the labels have shape": "MultiBoxLoss of other labels: Caffe reads as many as the third axis is long",
    "does not fit the first": "Scale of another length: this Caffe does not check it, Caffe 1.0 does",
    "has overwritten": "a blob whose memory another layer has overwritten: Caffe reads what that layer made",
}
"""Words of caffe-port's own refusals -> what Caffe does instead."""


def _shared(case: Case) -> set[str]:
    """The types of layers that name their blobs."""
    return {layer.type for layer in case.computing if any(param.name for param in layer.param)}


def _lost(case: Case) -> bool:
    """Whether a layer whose Backward moves the gradient of its bottom elsewhere reads what shares its gradient."""
    sharing = ("Reshape", "Parameter", "Concat", "Slice", "LSTM", "RNN")
    shared = {top for layer in case.computing if layer.type in sharing for top in layer.top}
    return any(shared & set(layer.bottom) for layer in case.computing if layer.type in ("Flatten", "Permute"))


def read_losses(case: Case) -> bool:
    """Whether a layer reads a loss, or a top of a layer with several loss_weights."""
    counting = [one for one in case.computing if has(one.type, Trait.LOSS) or len(one.loss_weight) > 1]
    losses = {top for layer in counting for top in layer.top}
    return any(losses & set(layer.bottom) for layer in case.computing)


def without_gradients(case: Case) -> bool:
    """Whether this Caffe has no gradients for the net."""
    types = [layer.type for layer in case.computing]
    learned = {top for layer in case.computing if keeps_blobs(layer.type) for top in layer.top}
    unforced = any(  # Backward goes only as far as there are parameters
        one.type == "MultiBoxLoss"
        and (not one.propagate_down or 0 in one.loss_weight or not learned.issuperset(one.bottom[:2]))
        for one in case.computing
    )
    unforced |= "MultiBoxLoss" in types and not all(keeps_blobs(type_) for type_ in types if type_ != "MultiBoxLoss")
    return unforced or any(has(type_, Trait.NO_BACKWARD) or type_ in NO_BACKWARD for type_ in types)


def reason(case: Case, verdict: Verdict, agrees: Callable[[Case], bool]) -> str:
    """Why this difference is deliberate; empty where it is a finding.

    Args:
        agrees: whether both sides agree on a net, which is asked about the same net without in-place layers.
    """
    types = {layer.type for layer in case.computing}
    if verdict.word == "only Caffe refuses":
        if "Pooling" in types and any(len(shape) == 5 for shape in case.inputs.values()):
            return "pooling of volumes: C3D and others have it"
        if "PReLU" in types and any(len(shape) == 5 for shape in case.inputs.values()):
            return "PReLU of volumes: Intel's Caffe has it"
        for words, why in FORKS.items():
            if words in verdict.what:
                return why
    named = re.search(r"\((\w+)\)$", verdict.at)
    at = {named[1]} if named and not verdict.what.startswith("gradient") else types
    for type_, why in OLDER.items():
        if type_ in at and (verdict.word == "differs" or len(types) == 1):
            return f"{type_}: {why}"
    if any(one.type in GROWING and any(one.loss_weight) for one in case.computing) and verdict.word == "differs":
        return "loss_weight of a top that grows: Caffe keeps it where the smaller one was"
    if "Filter" in types and verdict.key == ("differs", "top: shape"):
        return "Filter that nothing passes: Caffe's layers after it keep the shape that they had"
    if "Filter" in types and verdict.word in ("only Caffe refuses", "traceback") and verdict.at.startswith("forward"):
        return "Filter: Caffe checks sizes that depend on numbers as it runs"
    if verdict.word == "differs" and verdict.what.startswith("gradient") and _lost(case):
        return "Flatten or Permute of what shares its gradient: Caffe's Backward loses it"
    if verdict.word == "only caffe-port refuses":
        for words, why in STRICTER.items():
            if words in verdict.what:
                return why
    if verdict.word == "differs" and "Parameter" in types:
        top = {top for layer in case.computing if layer.type == "Parameter" for top in layer.top}
        if any(layer.type == "Parameter" and any(layer.loss_weight) for layer in case.computing):
            return "Parameter: Caffe forgets the loss_weight of its top"
        if any(top & set(layer.bottom) & set(layer.top) for layer in case.computing):
            return "Parameter: what overwrites its top changes the parameter itself"
        if any(layer.type == "Parameter" and layer.param for layer in case.computing):
            return "Parameter: of those that share a blob, Caffe keeps the gradient of one"
    if verdict.word == "differs" and verdict.what.startswith("gradient"):
        if any(param.share_mode == "PERMISSIVE" for layer in case.computing for param in layer.param):
            return "share_mode PERMISSIVE: copies of equal values, which `train` refuses"
        if _shared(case) & {"Scale", "BatchNormKyle"}:
            return "Scale as large as its bottom, BatchNormKyle: Backward does not add to the gradient of a shared blob"
        if any(layer.relu6_param.negative_slope < 0 for layer in case.computing):
            return "ReLU6 with a negative_slope below 0: Caffe's Backward looks at the bottom, not at the top"
    if any(one.type == "Upsample" and len(one.bottom) > 1 for one in case.computing):
        return "Upsample with two bottoms: SegNet's mask; this Caffe's reads the first bottom only"
    if types == {"Upsample"} and verdict.word == "only caffe-port refuses":
        return "Upsample of more axes than its dims_num"
    if verdict.word == "differs" and "BilinearInterpolate" in at:
        return "BilinearInterpolate of one row or column: this Caffe reads outside of the bottom"
    if verdict.word == "differs" and any(one.type == "BatchNorm" and len(one.param) == 3 for one in case.computing):
        return "BatchNorm with three param entries: this Caffe drops them with their names, as before 2017"
    if verdict.word == "differs" and case.phase == "TRAIN" and _shared(case) & {"LSTM", "RNN"}:
        return "LSTM or RNN that shares blobs, in TRAIN: Caffe's later steps keep those that the layer had before"
    if verdict.word == "differs" and verdict.what.startswith(("gradient", "loss")) and read_losses(case):
        return "a loss that other layers read: Caffe forgets loss_weights, or their gradient replaces the loss's"
    if verdict.word == "differs" and any(set(layer.top) & set(layer.bottom) for layer in case.computing):
        gradient = verdict.what.startswith("gradient")
        here = [
            one for one in case.computing if one.name == verdict.at.split(" ")[0] and set(one.top) & set(one.bottom)
        ]
        if (gradient or here) and agrees(out_of_place(case)):
            return "in place: Caffe's " + ("Backward" if gradient else "Forward") + " reads what was overwritten"
    return ""


def out_of_place(case: Case) -> Case:
    """The net with a blob of its own for every top."""
    renamed: dict[str, str] = {}
    layers = []
    for layer in case.layers:
        bottoms = [renamed.get(blob, blob) for blob in layer.bottom]
        for k, top in enumerate(layer.top):
            if top in layer.bottom:
                renamed[top] = f"{layer.name}_{k}"
        layers.append(layer.copy(bottom=bottoms, top=[renamed.get(top, top) for top in layer.top]))
    return case.replace(layers=tuple(layers))
