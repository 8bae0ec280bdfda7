"""The nets that runtimes are tried on: one construct each, at sizes where it may go wrong, and real nets."""

from __future__ import annotations

from dataclasses import dataclass

X = 'input: "x" input_shape {{ dim: 2 dim: {c} dim: {h} dim: {w} }}\n'
FILLERS = 'weight_filler { type: "xavier" } bias_filler { type: "gaussian" std: 0.1 }'


@dataclass(frozen=True)
class Net:
    """A net that runtimes are tried on.

    Attributes:
        label: for the table.
        text: its prototxt, with weights from its fillers; empty for a real net.
        files: prototxt and weights of a real net, below the folder of shared models.
        dynamic: what may differ in the exported file, see ``convert --dynamic``; it is then run in a second shape.
        onnx_only: whether the torch.export file holds something else.
    """

    label: str
    text: str = ""
    files: tuple[str, ...] = ()
    dynamic: str = "none"
    onnx_only: bool = False


def _pooling(h: int, w: int, param: str) -> str:
    layer = f'layer {{ name: "pool" type: "Pooling" bottom: "x" top: "y" pooling_param {{ {param} }} }}\n'
    return X.format(c=3, h=h, w=w) + layer


def _one(type_: str, param: str, c: int = 4, h: int = 6, w: int = 9) -> str:
    return X.format(c=c, h=h, w=w) + f'layer {{ name: "layer" type: "{type_}" bottom: "x" top: "y" {param} }}\n'


def _conv(name: str, bottom: str, n: int, param: str = "kernel_size: 3 pad: 1") -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
        f"convolution_param {{ num_output: {n} {param} {FILLERS} }} }}\n"
    )


def _ssd() -> str:
    """Two sources of boxes, three classes."""
    text = (
        X.format(c=3, h=40, w=48)
        + _conv("a", "x", 8, "kernel_size: 3 stride: 8")
        + _conv("b", "a", 8, "kernel_size: 3")
    )
    for source, smallest in (("a", 10), ("b", 20)):
        for kind, n in (("loc", 8), ("conf", 6)):
            text += _conv(f"{source}_{kind}", source, n)
            text += (
                f'layer {{ name: "{source}_{kind}_perm" type: "Permute" bottom: "{source}_{kind}" '
                f'top: "{source}_{kind}_perm" permute_param {{ order: 0 order: 2 order: 3 order: 1 }} }}\n'
                f'layer {{ name: "{source}_{kind}_flat" type: "Flatten" bottom: "{source}_{kind}_perm" '
                f'top: "{source}_{kind}_flat" flatten_param {{ axis: 1 }} }}\n'
            )
        text += (
            f'layer {{ name: "{source}_priors" type: "PriorBox" bottom: "{source}" bottom: "x" top: "{source}_priors" '
            f"prior_box_param {{ min_size: {smallest} max_size: {2 * smallest} clip: false "
            "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 } }\n"
        )
    for kind, axis in (("loc_flat", 1), ("conf_flat", 1), ("priors", 2)):
        text += (
            f'layer {{ name: "{kind}" type: "Concat" bottom: "a_{kind}" bottom: "b_{kind}" top: "{kind}" '
            f"concat_param {{ axis: {axis} }} }}\n"
        )
    return text + (
        'layer { name: "rows" type: "Reshape" bottom: "conf_flat" top: "rows" '
        "reshape_param { shape { dim: 0 dim: -1 dim: 3 } } }\n"
        'layer { name: "scores" type: "Softmax" bottom: "rows" top: "scores" softmax_param { axis: 2 } }\n'
        'layer { name: "conf" type: "Flatten" bottom: "scores" top: "conf" flatten_param { axis: 1 } }\n'
        'layer { name: "found" type: "DetectionOutput" bottom: "loc_flat" bottom: "conf" bottom: "priors" top: "found" '
        "detection_output_param { num_classes: 3 background_label_id: 0 nms_param { nms_threshold: 0.3 top_k: 20 } "
        "code_type: CENTER_SIZE keep_top_k: 15 confidence_threshold: 0.2 } }\n"
    )


def _head() -> str:
    text = _ssd()
    return text[: text.index('layer { name: "found"')]


_UNPOOL = (
    X.format(c=3, h=6, w=8) + 'layer { name: "pool" type: "Pooling" bottom: "x" top: "small" top: "mask" '
    "pooling_param { pool: MAX kernel_size: 2 stride: 2 } }\n"
    'layer { name: "up" type: "Upsample" bottom: "small" bottom: "mask" top: "y" upsample_param { scale: 2 } }\n'
)

_LSTM = (
    'input: "x" input_shape { dim: 5 dim: 2 dim: 7 }\ninput: "cont" input_shape { dim: 5 dim: 2 }\n'
    'layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "y" '
    f"recurrent_param {{ num_output: 6 {FILLERS} }} }}\n"
)

_DECONVOLUTION = "convolution_param { num_output: 3 kernel_size: 3 stride: 2 %s " + FILLERS + " }"
_DYNAMIC = (
    X.format(c=3, h=9, w=12)
    + _conv("conv", "x", 5)
    + 'layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" '
    "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }\n"
    'layer { name: "max" type: "Pooling" bottom: "pool" top: "max" '
    "pooling_param { pool: MAX kernel_size: 2 stride: 2 pad: 1 } }\n"
)
_IP = (
    'layer { name: "ip" type: "InnerProduct" bottom: "max" top: "ip" '
    f"inner_product_param {{ num_output: 5 {FILLERS} }} }}\n"
)

NETS = {
    "max_ceil": Net("MAX 3/2, ceil", _pooling(6, 8, "pool: MAX kernel_size: 3 stride: 2")),
    "max_pad": Net("MAX 3/2 pad 1, ceil", _pooling(6, 9, "pool: MAX kernel_size: 3 stride: 2 pad: 1")),
    "max_clip": Net("MAX 2/2 pad 1, last window dropped", _pooling(5, 7, "pool: MAX kernel_size: 2 stride: 2 pad: 1")),
    "max_clip3": Net("MAX 3/3 pad 1, last window dropped", _pooling(6, 9, "pool: MAX kernel_size: 3 stride: 3 pad: 1")),
    "max_gaps": Net("MAX 2/3 (stride > kernel)", _pooling(7, 10, "pool: MAX kernel_size: 2 stride: 3")),
    "ave_ceil": Net("AVE 3/2, ceil", _pooling(6, 8, "pool: AVE kernel_size: 3 stride: 2")),
    "ave_pad": Net("AVE 3/2 pad 1, ceil", _pooling(6, 8, "pool: AVE kernel_size: 3 stride: 2 pad: 1")),
    "ave_same": Net("AVE 3/1 pad 1", _pooling(6, 8, "pool: AVE kernel_size: 3 pad: 1")),
    "ave_clip": Net("AVE 2/2 pad 1, last window dropped", _pooling(5, 7, "pool: AVE kernel_size: 2 stride: 2 pad: 1")),
    "lrn": Net("LRN across channels", _one("LRN", "lrn_param { local_size: 5 alpha: 2 beta: 0.75 }", c=7)),
    "lrn_within": Net(
        "LRN within a channel", _one("LRN", "lrn_param { local_size: 3 alpha: 2 norm_region: WITHIN_CHANNEL }")
    ),
    "spp": Net("SPP, 3 levels", _one("SPP", "spp_param { pyramid_height: 3 pool: MAX }", h=11, w=14)),
    "prelu": Net("PReLU by channel", _one("PReLU", "")),
    "deconvolution": Net("Deconvolution 3/2", _one("Deconvolution", _DECONVOLUTION % "pad: 1")),
    "deconvolution_dilated": Net("Deconvolution, dilated", _one("Deconvolution", _DECONVOLUTION % "dilation: 2")),
    "interp": Net("Interp (corners aligned)", _one("Interp", "interp_param { height: 11 width: 17 }")),
    "unpooling": Net("Pooling's mask and unpooling", _UNPOOL),
    "lstm": Net("LSTM", _LSTM),
    "ssd_head": Net("SSD head", _head()),
    "ssd": Net("SSD with DetectionOutput", _ssd(), onnx_only=True),
    "dynamic_batch": Net("any batch", _DYNAMIC + _IP, dynamic="batch"),
    "dynamic_size": Net("any batch, height and width", _DYNAMIC, dynamic="size"),
    "lenet": Net(
        "LeNet", files=("zoo/caffe2014_lenet_v1/lenet.prototxt", "zoo/caffe2014_lenet_v1/lenet_iter_10000.caffemodel")
    ),
    "cifar10_full": Net(
        "cifar10_full",
        files=(
            "zoo/caffe2014_cifar10_v1/cifar10_full.prototxt",
            "zoo/caffe2014_cifar10_v1/cifar10_full_iter_70000.caffemodel",
        ),
    ),
    "simplenet": Net("SimpleNet slim (MNIST)", files=("simplenet/mnist_9972/weights.caffemodel",)),
    "slim_320": Net(
        "Ultra-light slim-320",
        files=("zoo/ultralight_slim-320/slim-320.prototxt", "zoo/ultralight_slim-320/slim-320.caffemodel"),
    ),
    "mtcnn": Net("MTCNN O-Net", files=("zoo/mtcnn_v2/det3.prototxt", "zoo/mtcnn_v2/det3.caffemodel")),
    "wechat_sr": Net("WeChat SR", files=("zoo/wechat_qrcode_sr/sr.prototxt", "zoo/wechat_qrcode_sr/sr.caffemodel")),
}
