"""Nets that say where something is in an image."""

from __future__ import annotations

from architectures.builder import Prototxt
from architectures.classification import Shape, vgg_stage

CLASSES = 21  # PASCAL VOC's twenty, and the background


def ssd300(net: Prototxt, shape: Shape) -> None:
    """Liu et al. 2015, SSD300 on VOC: VGG-16 with a dilated fc6, six maps of boxes."""
    data = net.input("data", *shape)
    label = net.input("label", 1, 1, 5, 8, phase="TRAIN")
    x, maps = data, []
    for number in range(1, 6):
        x = vgg_stage(net, x, number)
        if number == 4:
            scale = {"type": "constant", "value": 20}
            norm = {"across_spatial": False, "scale_filler": scale, "channel_shared": False}
            maps.append(net.layer("Normalize", "conv4_3_norm", x, norm_param=norm))
        x = net.pool(f"pool{number}", x, 3, 1, 1) if number == 5 else net.pool(f"pool{number}", x, 2, 2)
    x = net.conv_relu("fc6", x, 1024, 3, pad=6, dilation=6)
    x = net.conv_relu("fc7", x, 1024, 1)
    maps.append(x)
    for number, reduced, count, stride in ((6, 256, 512, 2), (7, 128, 256, 2), (8, 128, 256, 1), (9, 128, 256, 1)):
        x = net.conv_relu(f"conv{number}_1", x, reduced, 1)
        x = net.conv_relu(f"conv{number}_2", x, count, 3, stride, stride - 1)
        maps.append(x)
    ends: dict[str, list[str]] = {"loc": [], "conf": [], "priorbox": []}
    sizes, steps = (30, 60, 111, 162, 213, 264, 315), (8, 16, 32, 64, 100, 300)
    for k, x in enumerate(maps):
        ratios = [2] if k in (0, 4, 5) else [2, 3]
        boxes = 2 + 2 * len(ratios)
        for what, numbers in (("loc", 4), ("conf", CLASSES)):
            y = net.conv(f"{x}_mbox_{what}", x, boxes * numbers, 3, pad=1, exact=True, weight_filler={"type": "xavier"})
            y = net.layer("Permute", f"{y}_perm", y, permute_param={"order": [0, 2, 3, 1]})
            ends[what].append(net.layer("Flatten", f"{x}_mbox_{what}_flat", y, flatten_param={"axis": 1}))
        prior = {
            "min_size": float(sizes[k]),
            "max_size": float(sizes[k + 1]),
            "aspect_ratio": ratios,
            "flip": True,
            "clip": False,
            "variance": [0.1, 0.1, 0.2, 0.2],
            "step": steps[k],
            "offset": 0.5,
        }
        ends["priorbox"].append(net.layer("PriorBox", f"{x}_mbox_priorbox", [x, data], prior_box_param=prior))
    loc, conf, priors = (
        net.concat(f"mbox_{what}", *tops, axis=2 if what == "priorbox" else 1) for what, tops in ends.items()
    )
    loss = {
        "loc_loss_type": "SMOOTH_L1",
        "conf_loss_type": "SOFTMAX",
        "loc_weight": 1.0,
        "num_classes": CLASSES,
        "share_location": True,
        "match_type": "PER_PREDICTION",
        "overlap_threshold": 0.5,
        "use_prior_for_matching": True,
        "background_label_id": 0,
        "use_difficult_gt": True,
        "neg_pos_ratio": 3.0,
        "neg_overlap": 0.5,
        "code_type": "CENTER_SIZE",
    }
    net.layer(
        "MultiBoxLoss",
        "mbox_loss",
        [loc, conf, priors, label],
        phase="TRAIN",
        multibox_loss_param=loss,
        propagate_down=[True, True, False, False],
        loss_param={"normalization": "VALID"},
    )
    net.only("TEST")
    conf = net.softmax("mbox_conf_softmax", net.reshape("mbox_conf_reshape", conf, 0, -1, CLASSES), axis=2)
    conf = net.layer("Flatten", "mbox_conf_flatten", conf, flatten_param={"axis": 1})
    output = {
        "num_classes": CLASSES,
        "share_location": True,
        "background_label_id": 0,
        "nms_param": {"nms_threshold": 0.45, "top_k": 400},
        "code_type": "CENTER_SIZE",
        "keep_top_k": 200,
        "confidence_threshold": 0.01,
    }
    net.layer("DetectionOutput", "detection_out", [loc, conf, priors], detection_output_param=output)


def faster_rcnn(net: Prototxt, shape: Shape) -> None:
    """Ren et al. 2015, as py-faster-rcnn's VGG16 test.prototxt; in TRAIN the loss of the proposals (stage1_rpn_train).

    What the Python layer AnchorTargetLayer would say is an input.
    """
    x, info = net.input("data", *shape), net.input("im_info", shape[0], 3, phase="TEST")
    for number in range(1, 6):
        x = vgg_stage(net, x, number)
        x = net.pool(f"pool{number}", x, 2, 2) if number < 5 else x
    rpn = net.conv_relu("rpn_conv/3x3", x, 512, 3, pad=1)
    score = net.conv("rpn_cls_score", rpn, 18, 1, exact=True)
    delta = net.conv("rpn_bbox_pred", rpn, 36, 1, exact=True)
    score = net.reshape("rpn_cls_score_reshape", score, 0, 2, -1, 0)

    net.only("TRAIN")
    height, width = (n // 16 for n in shape[2:])
    label = net.input("rpn_labels", shape[0], 1, 9 * height, width)
    net.softmax_loss("rpn_loss_cls", score, label, 1, ignore=-1)
    targets = [net.input(f"rpn_bbox_{name}", shape[0], 36, height, width) for name in ("targets", "inside", "outside")]
    net.layer("SmoothL1Loss", "rpn_loss_bbox", [delta, *targets], loss_weight=1, smooth_l1_loss_param={"sigma": 3.0})

    net.only("TEST")
    prob = net.reshape("rpn_cls_prob_reshape", net.softmax("rpn_cls_prob", score), 0, 18, -1, 0)
    python = {"module": "rpn.proposal_layer", "layer": "ProposalLayer", "param_str": "'feat_stride': 16"}
    rois = net.layer("Python", "proposal", [prob, delta, info], "rois", python_param=python)
    pooling = {"pooled_w": 7, "pooled_h": 7, "spatial_scale": 0.0625}
    x = net.layer("ROIPooling", "roi_pool5", [x, rois], roi_pooling_param=pooling)
    for name in ("fc6", "fc7"):
        x = net.dropout(net.relu(net.fc(name, x, 4096)))
    net.softmax("cls_prob", net.fc("cls_score", x, CLASSES, exact=True))
    net.fc("bbox_pred", x, 4 * CLASSES, exact=True)


def yolo_v2(net: Prototxt, shape: Shape) -> None:
    """Redmon, Farhadi 2016, YOLOv2 on VOC: Darknet-19, a passthrough of finer features, five boxes for each cell."""

    def conv(number: int, x: str, count: int, kernel: int = 3) -> str:
        return net.conv_bn_relu(f"layer{number}-conv", x, count, kernel, pad=kernel // 2, slope=0.1, eps=1e-5)

    x, number = net.input("data", *shape), 1
    fine = ""
    for stage in (32,), (64,), (128, 64, 128), (256, 128, 256), (512, 256, 512, 256, 512), (1024, 512, 1024, 512, 1024):
        if number > 1:
            fine, x = x, net.pool(f"pool{number - 1}", x, 2, 2)
        for k, count in enumerate(stage):
            x = conv(number, x, count, 1 if k % 2 else 3)
            number += 1
    x = conv(20, conv(19, x, 1024), 1024)
    fine = net.layer("Reorg", "reorg1", conv(21, fine, 64, 1), reorg_param={"stride": 2})
    x = conv(22, net.concat("concat", fine, x), 1024)
    x = net.conv("layer23-conv", x, 125, 1, exact=True)
    anchors = [1.3221, 1.73145, 3.19275, 4.00944, 5.05587, 8.09892, 9.47112, 4.84053, 11.2364, 10.0071]
    output = {
        "num_classes": 20,
        "coords": 4,
        "confidence_threshold": 0.01,
        "nms_threshold": 0.45,
        "biases": anchors,
        "num_box": 5,
    }
    net.layer("YoloDetectionOutput", "detection_out", x, phase="TEST", yolo_detection_output_param=output)
