"""Every feed-forward type of the forks' families: as model.py, in float64, through torch.export and torch.compile."""

import pytest
import torch
from layers.test_detection import build, random

import caffe_port.layers.blocks
import caffe_port.layers.detection
import caffe_port.layers.flow
import caffe_port.layers.rcnn
import caffe_port.layers.resample
import caffe_port.layers.yolo  # noqa: F401
from caffe_port.api import port
from caffe_port.emit import convert, read_model


def rois():
    regions = random(6, 5).abs() * 30
    regions[:, 0] = torch.arange(6) % 2
    regions[:, 3:] += regions[:, 1:3]
    return regions


X, Y, LONG = random(2, 3, 5, 6), random(2, 3, 5, 6, seed=1), random(2, 8, 6, 10)
MASK = torch.arange(30.0).reshape(5, 6).expand(2, 3, 5, 6).contiguous()

CASES = {
    "PriorBox": ("prior_box_param { min_size: 10 max_size: 20 aspect_ratio: 2 }", X, random(2, 3, 50, 60)),
    "Interp": ("interp_param { height: 9 width: 11 }", X),
    "Interp zoom": ("interp_param { zoom_factor: 2 pad_beg: -1 }", X),
    "Interp like": ("", X, LONG),
    "Upsample": ("upsample_param { scale: 2 }", X),
    "Upsample mask": ("upsample_param { scale: 2 }", X, MASK),
    "Resample": ("resample_param { height: 9 width: 11 type: CUBIC }", X),
    "Reorg": ("reorg_param { stride: 2 }", LONG),
    "Reverse": ("reverse_param { axis: 2 }", X),
    "CropCenter": ("crop_center_param { crop_size: 0 crop_size: 1 crop_size: 1 crop_size: 2 }", X),
    "Axpy": ("", random(2, 3, 1, 1), X, Y),
    "Mish": ("", X),
    "GRN": ("grn_param { bias: 2 }", X),
    "Local": ("local_param { num_output: 4 kernel_size: 3 weight_filler { type: 'xavier' } }", X),
    "Correlation": ("correlation_param { kernel_size: 1 max_displacement: 2 pad: 2 }", X, Y),
    "Correlation1D": ("correlation_param { kernel_size: 1 max_displacement: 2 pad: 2 single_direction: -1 }", X, Y),
    "FlowWarp": ("", X, random(2, 2, 5, 6)),
    "ChannelNorm": ("", X),
    "DataAugmentation": ("augmentation_param { recompute_mean: 9 crop_height: 3 crop_width: 5 }", X),
    "ROIPooling": ("roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.1 }", LONG, rois()),
    "ROIAlign": ("roi_align_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.1 roi_end_mode: 1 }", LONG, rois()),
    "PSROIPooling": ("psroi_pooling_param { output_dim: 2 group_size: 2 spatial_scale: 0.1 }", LONG, rois()),
    "DeformableConvolution": (
        "deformable_convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: 'xavier' } }",
        X,
        random(2, 18, 5, 6),
    ),
}
DETECTIONS = {
    "DetectionOutput": (
        "detection_output_param { num_classes: 3 confidence_threshold: 0.4 nms_param { nms_threshold: 0.6 eta: 0.9 } }",
        random(2, 48),
        random(2, 36),
        random(1, 2, 48).abs(),
    ),
    "Proposal": (
        "proposal_param { ratio: 1 scale: 2 scale: 4 }",
        random(1, 4, 5, 6),
        random(1, 8, 5, 6),
        random(1, 3) + 70,
    ),
    "YoloDetectionOutput": (
        "yolo_detection_output_param { num_classes: 3 num_box: 1 biases: 2 biases: 3 }",
        random(2, 8, 5, 5),
    ),
    "Yolov3DetectionOutput": (
        "yolov3_detection_output_param { num_classes: 3 num_box: 1 biases: [9, 7] mask: [0, 0] anchors_scale: [8, 9] }",
        random(2, 8, 5, 5),
        random(2, 8, 3, 3),
    ),
}


@pytest.mark.parametrize("name", [*CASES, *DETECTIONS])
def test_model_py_gives_the_same(tmp_path, name):
    text, *inputs = (CASES | DETECTIONS)[name]
    net = "".join(
        f'layer {{ name: "in{i}" type: "Input" top: "in{i}" input_param {{ shape {{'
        + "".join(f" dim: {n}" for n in x.shape)
        + " } } }\n"
        for i, x in enumerate(inputs)
    )
    bottoms = " ".join(f'bottom: "in{i}"' for i in range(len(inputs)))
    path = tmp_path / "net.prototxt"
    path.write_text(f'name: "Net"\n{net}layer {{ name: "l" type: "{name.split()[0]}" {bottoms} top: "l" {text} }}')
    made = port(path)
    result = convert(made, tmp_path / "out")
    model = read_model(
        (result.folder / "model.py").read_text(), result.class_name, result.folder / "weights.safetensors"
    )
    want = made.net(*inputs)
    torch.testing.assert_close(model(*inputs), want, rtol=0, atol=0)
    wide = made.net.double()(*[x.double() for x in inputs])
    assert wide.dtype == torch.float64
    if name in CASES:
        torch.testing.assert_close(wide.float(), want, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # torch's own
@pytest.mark.parametrize("name", CASES)
def test_torch_exports_and_compiles_without_breaks(name):
    text, *inputs = CASES[name]
    layer = build(name.split()[0], text, *(x.shape for x in inputs))
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter)
    program = torch.export.export(layer, tuple(inputs)).module()
    torch.testing.assert_close(program(*inputs), layer(*inputs))
    torch.compile(layer, backend="eager", fullgraph=True)(*inputs)
