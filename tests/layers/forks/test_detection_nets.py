"""Detection nets end to end, with random weights: against OpenCV, and as model.py."""

import cv2
import numpy as np
import pytest
import torch
from fork_layers import assert_rows_close

import caffe_port.layers.forks.blocks
import caffe_port.layers.forks.detection
import caffe_port.layers.forks.detection_loss
import caffe_port.layers.forks.rcnn
import caffe_port.layers.forks.resample  # noqa: F401
from caffe_port.api import port
from caffe_port.emit.convert import convert
from caffe_port.emit.self_check import read_model
from caffe_port.formats import wire
from caffe_port.formats.caffemodel import blob_message
from caffe_port.formats.message import Message


def conv(name, bottom, outputs, kernel=3, stride=1, group=1, relu=True):
    pad = kernel // 2
    text = f"""
layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param {{ num_output: {outputs}
  kernel_size: {kernel} stride: {stride} pad: {pad} group: {group} weight_filler {{ type: "msra" }} bias_filler {{
  type: "constant" value: 0.1 }} }} }}"""
    return text + (f'\nlayer {{ name: "{name}/relu" type: "ReLU" bottom: "{name}" top: "{name}" }}' if relu else "")


def ssd_head(name, bottom, boxes, classes, sizes):
    text = ""
    for kind, channels in (("loc", 4 * boxes), ("conf", classes * boxes)):
        full = f"{name}_mbox_{kind}"
        text += conv(full, bottom, channels, relu=False).replace('"msra"', '"gaussian" std: 0.05')
        text += f"""
layer {{ name: "{full}_perm" type: "Permute" bottom: "{full}" top: "{full}_perm" permute_param {{ order: 0 order: 2
  order: 3 order: 1 }} }}
layer {{ name: "{full}_flat" type: "Flatten" bottom: "{full}_perm" top: "{full}_flat" flatten_param {{ axis: 1 }} }}"""
    return f"""{text}
layer {{ name: "{name}_mbox_priorbox" type: "PriorBox" bottom: "{bottom}" bottom: "data" top: "{name}_mbox_priorbox"
  prior_box_param {{ {sizes} clip: false variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 offset: 0.5 }} }}"""


def concat(kind, axis):
    bottoms = " ".join(f'bottom: "{name}_mbox_{kind}"' for name in ("conv2", "conv3"))
    whole = "mbox_" + kind.removesuffix("_flat")
    return f'layer {{ name: "{whole}" type: "Concat" {bottoms} top: "{whole}" concat_param {{ axis: {axis} }} }}\n'


MOBILENET_SSD = (
    'name: "MobileNet-SSD-like"\ninput: "data"\ninput_shape { dim: 2 dim: 3 dim: 48 dim: 64 }'
    + conv("conv0", "data", 8, stride=2)
    + conv("conv1/dw", "conv0", 8, group=8)
    + """
layer { name: "conv1/dw/bn" type: "BatchNorm" bottom: "conv1/dw" top: "conv1/dw/bn" }
layer { name: "conv1/dw/scale" type: "Scale" bottom: "conv1/dw/bn" top: "conv1/dw/bn" scale_param { bias_term: true
  filler { value: 0.7 } } }"""
    + conv("conv1", "conv1/dw/bn", 12, kernel=1)
    + conv("conv2", "conv1", 16, stride=2)
    + conv("conv3", "conv2", 20, stride=2)
    + ssd_head("conv2", "conv2", 3, 5, "min_size: 12 aspect_ratio: 2.0 flip: true")
    + ssd_head("conv3", "conv3", 6, 5, "min_size: 20 max_size: 33 aspect_ratio: 2.0 aspect_ratio: 3.0 flip: true")
    + "\n"
    + concat("loc_flat", 1)
    + concat("conf_flat", 1)
    + concat("priorbox", 2)
    + """
layer { name: "mbox_conf_reshape" type: "Reshape" bottom: "mbox_conf" top: "mbox_conf_reshape" reshape_param { shape {
  dim: 0 dim: -1 dim: 5 } } }
layer { name: "mbox_conf_softmax" type: "Softmax" bottom: "mbox_conf_reshape" top: "mbox_conf_softmax" softmax_param {
  axis: 2 } }
layer { name: "mbox_conf_flatten" type: "Flatten" bottom: "mbox_conf_softmax" top: "mbox_conf_flatten" flatten_param {
  axis: 1 } }
layer { name: "detection_out" type: "DetectionOutput" bottom: "mbox_loc" bottom: "mbox_conf_flatten"
  bottom: "mbox_priorbox" top: "detection_out" include { phase: TEST } detection_output_param { num_classes: 5
  share_location: true background_label_id: 0 nms_param { nms_threshold: 0.45 top_k: 100 } code_type: CENTER_SIZE
  keep_top_k: 40 confidence_threshold: 0.25 } }
"""
)

FASTER_RCNN = (
    'name: "Faster R-CNN-like"\ninput: "data" input_shape { dim: 1 dim: 3 dim: 112 dim: 160 }\n'
    'input: "im_info" input_shape { dim: 1 dim: 3 }'
    + conv("conv1", "data", 8, stride=4)
    + conv("conv2", "conv1", 12, stride=4)
    + conv("rpn/output", "conv2", 16)
    + conv("rpn_cls_score", "rpn/output", 18, kernel=1, relu=False)
    + conv("rpn_bbox_pred", "rpn/output", 36, kernel=1, relu=False)
    + """
layer { name: "rpn_cls_score_reshape" type: "Reshape" bottom: "rpn_cls_score" top: "rpn_cls_score_reshape"
  reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 0 } } }
layer { name: "rpn_cls_prob" type: "Softmax" bottom: "rpn_cls_score_reshape" top: "rpn_cls_prob" }
layer { name: "rpn_cls_prob_reshape" type: "Reshape" bottom: "rpn_cls_prob" top: "rpn_cls_prob_reshape"
  reshape_param { shape { dim: 0 dim: 18 dim: -1 dim: 0 } } }
PROPOSAL
layer { name: "roi_pool5" type: "ROIPooling" bottom: "conv2" bottom: "rois" top: "pool5" roi_pooling_param {
  pooled_w: 5 pooled_h: 3 spatial_scale: 0.0625 } }
layer { name: "fc6" type: "InnerProduct" bottom: "pool5" top: "fc6" inner_product_param { num_output: 14 weight_filler {
  type: "xavier" } } }
layer { name: "cls_score" type: "InnerProduct" bottom: "fc6" top: "cls_score" inner_product_param { num_output: 4
  weight_filler { type: "xavier" } } }
layer { name: "bbox_pred" type: "InnerProduct" bottom: "fc6" top: "bbox_pred" inner_product_param { num_output: 16
  weight_filler { type: "xavier" } } }
layer { name: "cls_prob" type: "Softmax" bottom: "cls_score" top: "cls_prob" }
"""
)
BOTTOMS = 'name: "proposal" bottom: "rpn_cls_prob_reshape" bottom: "rpn_bbox_pred" bottom: "im_info" top: "rois"'
CPP = f"""layer {{ type: "Proposal" {BOTTOMS} proposal_param {{ feat_stride: 16 base_size: 16 min_size: 0 ratio: 0.5
  ratio: 1.0 ratio: 2.0 scale: 2 scale: 4 scale: 8 pre_nms_topn: 300 post_nms_topn: 20 nms_thresh: 0.7 }} }}"""
PYTHON = f"""layer {{ type: "Python" {BOTTOMS} python_param {{ module: "rpn.proposal_layer" layer: "ProposalLayer"
  param_str: "'feat_stride': 16\\n'scales': !!python/tuple [2, 4, 8]" }} }}"""


def ported(tmp_path, text, **options):
    path = tmp_path / "net.prototxt"
    path.write_text(text)
    return port(path, **options)


def opencv_net(net, text):
    layers = [
        Message(
            "LayerParameter", name=name, type=type(net.caffe_layers()[name]).__name__, blobs=[*map(blob_message, blobs)]
        )
        for name, blobs in net.blobs().items()
    ]
    stored = b"".join(wire.serialize(Message("NetParameter", name="n", layer=layers)))
    made = cv2.dnn.readNetFromCaffe(*(np.frombuffer(b, np.uint8) for b in (text.encode(), stored)))
    made.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    return made


def emitted(tmp_path, ported):
    result = convert(ported, tmp_path / "out", channels_last=False)
    source = (result.folder / "model.py").read_text()
    assert "caffe_port" not in source.split('"""', 2)[2]
    return source, read_model(source, result.class_name, result.folder / "weights.safetensors")


def test_a_mobilenet_ssd_finds_what_opencv_finds(tmp_path):
    made = ported(tmp_path, MOBILENET_SSD)
    random = np.random.default_rng(0)
    statistics = [random.normal(0, 0.1, 8), random.uniform(0.5, 2, 8), np.ones(1)]
    made.net.caffe_layers()["conv1/dw/bn"].load_blobs([s.astype(np.float32) for s in statistics])
    x = random.normal(0, 1, (2, 3, 48, 64)).astype(np.float32)
    got = made.net(torch.from_numpy(x)).detach().numpy()
    theirs = opencv_net(made.net, MOBILENET_SSD)
    theirs.setInput(x)
    assert got.shape[2] > 20
    assert_rows_close(got, theirs.forward())
    source, model = emitted(tmp_path, made)
    assert "class DetectionOutput(nn.Module):" in source
    assert torch.equal(model(torch.from_numpy(x)), torch.from_numpy(got))


@pytest.mark.parametrize("proposal", [CPP, PYTHON])
def test_a_faster_rcnn_head_gives_what_opencv_gives(tmp_path, proposal):
    made = ported(tmp_path, FASTER_RCNN.replace("PROPOSAL", proposal))
    x = np.random.default_rng(0).normal(0, 1, (1, 3, 112, 160)).astype(np.float32)
    info = np.float32([[112, 160, 1]])
    got = made.net(torch.from_numpy(x), torch.from_numpy(info))
    assert set(got) == {"bbox_pred", "cls_prob"}
    if proposal is CPP:
        theirs = opencv_net(made.net, FASTER_RCNN.replace("PROPOSAL", proposal))
        theirs.setInput(x, "data")
        theirs.setInput(info, "im_info")
        for name, wanted in zip(("cls_prob", "bbox_pred"), theirs.forward(["cls_prob", "bbox_pred"]), strict=True):
            mine = got[name].detach().numpy()
            np.testing.assert_allclose(mine, wanted[: len(mine)], rtol=1e-4, atol=1e-5)
    source, model = emitted(tmp_path, made)
    assert "class Proposal(nn.Module):" in source
    for name, top in model(torch.from_numpy(x), torch.from_numpy(info)).items():
        assert torch.equal(top, got[name])


def test_the_training_net_of_an_ssd_has_its_loss_and_converts_without(tmp_path):
    label = 'layer { name: "data" type: "AnnotatedData" top: "data" top: "label" }\n'
    text = MOBILENET_SSD.split('layer { name: "mbox_conf_reshape"')[0].replace(
        'input: "data"\ninput_shape { dim: 2 dim: 3 dim: 48 dim: 64 }', label
    ) + (
        'layer { name: "mbox_loss" type: "MultiBoxLoss" bottom: "mbox_loc" bottom: "mbox_conf" bottom: "mbox_priorbox"'
        ' bottom: "label" top: "mbox_loss" multibox_loss_param { num_classes: 5 code_type: CENTER_SIZE } }\n'
    )
    shapes = {"data": (2, 3, 48, 64), "label": (1, 1, 3, 8)}
    whole = ported(tmp_path, text, input_shapes=shapes, keep_loss=True).net
    truth = torch.tensor(
        [[0, 1, 0, 0.1, 0.1, 0.4, 0.5, 0], [1, 4, 0, 0.5, 0.2, 0.9, 0.8, 0], [1, 2, 0, 0, 0, 0.3, 0.3, 0]]
    )
    x = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    _, loss = whole.forward_with_loss(x, truth[None, None])
    loss.backward()
    assert loss > 0
    assert whole.conv0.weight.grad.abs().sum() > 0
    deploy = ported(tmp_path, text, input_shapes={"data": shapes["data"]}).net
    assert set(deploy(x)) == {"mbox_conf", "mbox_loc", "mbox_priorbox"}
