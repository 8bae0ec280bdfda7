"""The deploy view of training nets that people published: what is left out, and that it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_port import api
from caffe_port.errors import SpecError, UnsupportedLayerError


def layer(name: str, type_: str, bottoms: str = "", tops: str = "", more: str = "") -> str:
    blobs = "".join(f' bottom: "{b}"' for b in bottoms.split()) + "".join(f' top: "{t}"' for t in tops.split())
    return f'layer {{ name: "{name}" type: "{type_}"{blobs} {more} }}\n'


def conv(name: str, bottom: str, outputs: int, kernel: int = 1, stride: int = 1) -> str:
    p = f"num_output: {outputs} kernel_size: {kernel} stride: {stride}"
    return layer(name, "Convolution", bottom, name, f"convolution_param {{ {p} }}")


def inner(name: str, bottom: str, outputs: int) -> str:
    return layer(name, "InnerProduct", bottom, name, f"inner_product_param {{ num_output: {outputs} }}")


def python(name: str, bottoms: str, tops: str, code: str, more: str = "") -> str:
    module, _, class_ = code.rpartition(".")
    return layer(name, "Python", bottoms, tops, f"python_param {{ module: '{module}' layer: '{class_}' }} {more}")


def port(folder: Path, text: str) -> api.Ported:
    path = folder / "net.prototxt"
    path.write_text(text)
    return api.port(path)


def view(ported: api.Ported) -> tuple[list[str], list[str]]:
    """Inputs and outputs."""
    plan = ported.net.plan
    return list(plan.inputs), [blob for blob, _ in plan.outputs]


def left_out(ported: api.Ported) -> list[str]:
    """Who is left out and why, without lines."""
    return [note.partition(": ")[2] for note in ported.notes if "left out" in note]


SAMPLER = "rpn.proposal_target_layer.ProposalTargetLayer"
RPN = (
    python("input-data", "", "data im_info gt_boxes", "roi_data_layer.layer.RoIDataLayer")
    + conv("conv5", "data", 6, 16, 16)
    + conv("rpn_cls_score", "conv5", 18)
    + conv("rpn_bbox_pred", "conv5", 36)
    + layer("pairs", "Reshape", "rpn_cls_score", "pairs", "reshape_param { shape { dim: [0, 2, -1, 0] } }")
    + python(
        "rpn-data",
        "rpn_cls_score gt_boxes im_info data",
        "rpn_labels rpn_targets rpn_inside rpn_outside",
        "rpn.anchor_target_layer.AnchorTargetLayer",
    )
    + layer("rpn_loss_cls", "SoftmaxWithLoss", "pairs rpn_labels", "rpn_loss_cls")
    + layer("rpn_loss_bbox", "SmoothL1Loss", "rpn_bbox_pred rpn_targets rpn_inside rpn_outside", "rpn_loss_bbox")
    + layer("rpn_cls_prob", "Softmax", "pairs", "rpn_cls_prob")
    + layer("back", "Reshape", "rpn_cls_prob", "back", "reshape_param { shape { dim: [0, 18, -1, 0] } }")
    + python("proposal", "back rpn_bbox_pred im_info", "rpn_rois", "rpn.proposal_layer.ProposalLayer")
    + python("roi-data", "rpn_rois gt_boxes", "rois labels bbox_targets bbox_inside bbox_outside", SAMPLER)
)
RPN_LEFT_OUT = [
    f"layer 'roi-data' ({SAMPLER}) samples boxes for training and is left out: 'rois' is 'rpn_rois'",
    "layer 'rpn-data' (rpn.anchor_target_layer.AnchorTargetLayer) is of an unknown type, reads labels and is left out",
]


def test_faster_rcnn(tmp_path: Path) -> None:
    """py-faster-rcnn's end2end/train.prototxt, shortened."""
    pooled = "roi_pooling_param { pooled_w: 3 pooled_h: 2 spatial_scale: 0.0625 }"
    text = (
        RPN
        + layer("roi_pool5", "ROIPooling", "conv5 rois", "pool5", pooled)
        + inner("fc6", "pool5", 8)
        + inner("cls_score", "fc6", 21)
        + inner("bbox_pred", "fc6", 84)
        + layer("loss_cls", "SoftmaxWithLoss", "cls_score labels", "loss_cls")
        + layer("loss_bbox", "SmoothL1Loss", "bbox_pred bbox_targets bbox_inside bbox_outside", "loss_bbox")
    )
    ported = port(tmp_path, text)
    assert view(ported) == (["data", "im_info"], ["bbox_pred", "cls_score"])
    assert left_out(ported) == RPN_LEFT_OUT
    assert ported.net.plans[True].outputs, "train() is built too"
    assert not any("TRAIN cannot be built" in note for note in ported.notes)


def test_cascade_rcnn(tmp_path: Path) -> None:
    """Cascade R-CNN's train.prototxt, shortened: the test net has no true boxes, which DecodeBBox reads in training."""
    group = "box_group_param { field_h: 20 field_w: 30 stride: 16 }"
    pooled = "roi_pooling_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.0625 }"
    text = (
        layer("data", "DetectionData", "", "data label gt_boxes")
        + conv("conv5", "data", 6, 16, 16)
        + conv("score", "conv5", 2)
        + conv("box", "conv5", 4)
        + layer("loss", "DetectionGroupLoss", "score label", "loss")
        + layer("prob", "Softmax", "score", "prob")
        + layer("proposals", "BoxGroupOutput", "prob box", "proposals", f"box_group_output_param {{ {group} }}")
        + layer("choose", "ProposalTarget", "proposals gt_boxes", "rois labels targets match")
        + layer("align", "ROIAlign", "conv5 rois", "align", pooled)
        + layer("pool", "Pooling", "align", "pool", "pooling_param { pool: AVE kernel_size: 2 }")
        + inner("code", "pool", 8)
        + layer("loss_box", "SmoothL1Loss", "code targets", "loss_box")
        + layer("next", "DecodeBBox", "code rois match", "next")
        + layer("pool_2nd", "ROIPooling", "conv5 next", "pool_2nd", pooled)
    )
    ported = port(tmp_path, text)
    assert view(ported) == (["data"], ["pool_2nd"])
    assert ported.net.plan.spec.by_name["next"].bottoms == ("code", "rois")
    assert left_out(ported)[0].endswith("samples boxes for training and is left out: 'rois' is 'proposals'")
    assert any("values at the corners of the bins" in note for note in ported.notes)
    assert ported.net.pool.kernel_size == (2, 2)
    assert ported.net.code.in_features == 6 * 3 * 2  # the means of four corners


def test_r_fcn_with_ohem(tmp_path: Path) -> None:
    """The losses feed BoxAnnotatorOHEM, which feeds losses; im_info is read by nothing learned, and is no label."""
    pool = "psroi_pooling_param { spatial_scale: 0.0625 output_dim: 21 group_size: 3 }"
    average = "pooling_param { pool: AVE kernel_size: 3 }"
    text = (
        RPN
        + conv("rfcn_cls", "conv5", 21 * 9)
        + layer("psroi", "PSROIPooling", "rfcn_cls rois", "psroi", pool)
        + layer("ave", "Pooling", "psroi", "cls_score", average)
        + layer(
            "per_roi",
            "SoftmaxWithLossOHEM",
            "cls_score labels",
            "temp_loss temp_prob per_roi",
            "loss_weight: [0, 0, 0]",
        )
        + layer(
            "annotator",
            "BoxAnnotatorOHEM",
            "rois per_roi labels bbox_inside",
            "labels_ohem weights_ohem",
            "box_annotator_ohem_param { roi_per_img: 128 }",
        )
        + layer("silence", "Silence", "bbox_outside temp_loss temp_prob")
        + layer("loss", "SoftmaxWithLoss", "cls_score labels_ohem", "loss")
    )
    ported = port(tmp_path, text)
    assert view(ported) == (["data", "im_info"], ["cls_score"])
    assert RPN_LEFT_OUT[1] in left_out(ported)


DIGITS_TEST = 'include { phase: TEST not_stage: "val" }'
DIGITS_LABELS = 'include { phase: TRAIN } include { phase: TEST stage: "val" }'


def test_detectnet(tmp_path: Path) -> None:
    """DIGITS' detectnet_network.prototxt, shortened: three nets in one file."""
    product = "eltwise_param { operation: PROD }"
    text = (
        layer("train_data", "Data", "", "data", "include { phase: TRAIN }")
        + layer("train_label", "Data", "", "label", "include { phase: TRAIN }")
        + layer("deploy_data", "Input", "", "data", f"input_param {{ shape {{ dim: [1, 3, 32, 48] }} }} {DIGITS_TEST}")
        + layer(
            "train_transform",
            "OwnDetectTransformation",
            "data label",
            "transformed_data transformed_label",
            "include { phase: TRAIN }",
        )
        + layer("deploy_transform", "Power", "data", "transformed_data", f"power_param {{ shift: -127 }} {DIGITS_TEST}")
        + layer(
            "slice-label",
            "Slice",
            "transformed_label",
            "fg bbox-label cvg-label",
            f"slice_param {{ slice_point: [1, 5] }} {DIGITS_LABELS}",
        )
        + layer("cvg-block", "Concat", "fg fg fg fg", "cvg-block", DIGITS_LABELS)
        + conv("conv1", "transformed_data", 5, 16, 16)
        + conv("cvg", "conv1", 1)
        + layer("sig", "Sigmoid", "cvg", "coverage")
        + conv("bboxes", "conv1", 4)
        + layer("mask", "Eltwise", "bboxes cvg-block", "bboxes-masked", f"{product} {DIGITS_LABELS}")
        + layer("bbox_loss", "L1Loss", "bboxes-masked bbox-label", "loss_bbox", f"loss_weight: 2 {DIGITS_LABELS}")
        + layer("cvg_loss", "EuclideanLoss", "coverage cvg-label", "loss_cvg", DIGITS_LABELS)
        + python("cluster", "coverage bboxes", "list", "clustering.ClusterDetections", "include { phase: TEST }")
        + python("score", "cvg-label list", "scored", "detectnet.mean_ap.Score", 'include { phase: TEST stage: "val" }')
        + python(
            "mAP", "scored", "mAP precision recall", "detectnet.mean_ap.mAP", 'include { phase: TEST stage: "val" }'
        )
    )
    ported = port(tmp_path, text)
    assert view(ported) == (["data"], ["bboxes", "coverage"])
    assert left_out(ported) == [
        (
            "layer 'cluster' (clustering.ClusterDetections) is of an unknown type, "
            "runs Python code after the net and is left out"
        )
    ]
    train = ported.net.plans[True]
    assert [blob for blob, _ in train.outputs] == ["bboxes", "coverage"]
    assert train.inputs == ("transformed_data",), "a layer of an unknown type that prepares data is an input"


FEATURES = layer("data", "ImageData", "", "data label", "image_data_param { new_height: 12 new_width: 11 }") + inner(
    "fc5", "data", 7
)


@pytest.mark.parametrize(
    ("end", "outputs", "reasons"),
    [
        (
            layer("fc6", "OwnMarginInner", "fc5 label", "fc6 lambda") + layer("l", "SoftmaxWithLoss", "fc6 label", "l"),
            ["fc5"],
            ["layer 'fc6' (OwnMarginInner) is of an unknown type, reads labels and is left out"],
        ),
        (
            inner("fc6", "fc5", 4) + layer("r", "OwnRank", "fc6", "r", "loss_weight: 0.1"),
            ["fc6"],
            ["layer 'r' (OwnRank) is of an unknown type, is a loss or a metric and is left out"],
        ),
        (
            inner("fc6", "fc5", 4) + layer("r", "LossN", "fc6 label", "r") + layer("s", "Silence", "r"),
            ["fc6"],
            [
                (
                    "layer 'r' (LossN) is of an unknown type, is a loss or a metric and is left out, "
                    "with the layers that read it: s"
                )
            ],
        ),
        (
            python("select", "fc5 label", "a p n", "tripletloss.TripletSelectLayer")
            + python("triplet", "a p n", "loss", "tripletloss.TripletLayer", "loss_weight: 1"),
            ["fc5"],
            [
                (
                    "layer 'triplet' (tripletloss.TripletLayer) is of an unknown type, "
                    "is a loss or a metric and is left out"
                ),
                "layer 'select' (tripletloss.TripletSelectLayer) is of an unknown type, reads labels and is left out",
            ],
        ),
        (
            layer("target", "OwnTargets", "fc5", "target")
            + inner("fc6", "fc5", 7)
            + layer("l", "EuclideanLoss", "fc6 target", "l"),
            ["fc6"],
            ["layer 'target' (OwnTargets) is of an unknown type, produces targets for losses and is left out"],
        ),
        (
            inner("fc6", "fc5", 4) + layer("w", "OwnWriter", "fc6", ""),
            ["fc6"],
            ["layer 'w' (OwnWriter) is of an unknown type, makes nothing and is left out"],
        ),
    ],
    ids=["margin product", "loss_weight", "a loss by name", "triplets", "targets", "writer"],
)
def test_what_serves_labels(tmp_path: Path, end: str, outputs: list[str], reasons: list[str]) -> None:
    ported = port(tmp_path, FEATURES + end)
    assert view(ported)[1] == outputs
    assert left_out(ported) == reasons


@pytest.mark.parametrize(
    "end",
    [
        layer("own", "Own", "fc5", "own") + inner("fc6", "own", 4),
        layer("own", "Own", "fc5 label", "own")
        + inner("fc6", "own", 4)
        + layer("l", "SoftmaxWithLoss", "fc6 label", "l"),
        layer("own", "Own", "fc5", "own"),
        layer("own", "Own", "fc5", "own") + layer("s", "Softmax", "own", "s"),
        layer("own", "Own", "fc5", "own") + layer("l", "SoftmaxWithLoss", "own label", "l"),
        python("own", "fc5", "own", "my.Own") + inner("fc6", "own", 4),
    ],
    ids=["middle", "middle with label", "end", "softmax behind", "scores of a loss", "python"],
)
def test_what_the_net_needs_is_never_left_out(tmp_path: Path, end: str) -> None:
    with pytest.raises(SpecError) as caught:
        port(tmp_path, FEATURES + end)
    assert "--stub" in str(caught.value)
    assert "--plugin" in str(caught.value)
    assert isinstance(caught.value, UnsupportedLayerError) or "Python code" in str(caught.value)


def test_a_loss_of_masked_scores(tmp_path: Path) -> None:
    """Realtime pose estimation: products with weights from the label make what the loss compares, and nothing else."""
    text = (
        FEATURES
        + inner("fc6", "fc5", 4)
        + layer("weights", "Slice", "label", "weight target", "slice_param { axis: 0 slice_point: 1 }")
        + layer("weighted", "Eltwise", "fc6 weight", "weighted", "eltwise_param { operation: PROD }")
        + layer("l", "EuclideanLoss", "weighted target", "l")
    )
    assert view(port(tmp_path, text)) == (["data"], ["fc6"])


def test_what_reads_a_loss(tmp_path: Path) -> None:
    text = (
        FEATURES
        + layer("l", "EuclideanLoss", "fc5 label", "l")
        + layer("m", "Power", "l", "m")
        + layer("a", "Accuracy", "fc5 label", "a")
    )
    ported = port(tmp_path, text)
    assert view(ported) == (["data"], ["fc5"])
    assert "layers that read a loss or Accuracy are left out: m" in ported.notes


def test_a_net_of_train_only(tmp_path: Path) -> None:
    only = "include { phase: TRAIN }"
    text = FEATURES.replace('type: "InnerProduct"', f'type: "InnerProduct" {only}').replace(
        'type: "ImageData"', f'type: "ImageData" {only}'
    )
    ported = port(tmp_path, text)
    assert view(ported) == (["data"], ["fc5"])
    assert any(note.startswith("phase TEST cannot be built; eval() uses the layers of") for note in ported.notes)


def test_a_label_that_nobody_reads_in_test(tmp_path: Path) -> None:
    text = FEATURES.replace('type: "ImageData"', 'type: "ImageData" include { phase: TRAIN }')
    text += layer("l", "SoftmaxWithLoss", "fc5 label", "l", "include { phase: TRAIN }")
    assert view(port(tmp_path, text)) == (["data"], ["fc5"])
