"""Published nets of Caffe's forks, whole: converted, written as model.py, and verified layer by layer.

    python benchmarks/fork_nets.py FOLDER [NET ...] [--convert-only]

The prototxts are not part of this repository. Clone what the table names into FOLDER/OWNER/NAME, or put the single
files there. Weights are drawn, because those that were published are not at hand.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import caffe_port
from caffe_port.api import Ported, port
from caffe_port.emit.convert import convert
from caffe_port.errors import CaffePortError

SYNOPSYS = "foss-for-synopsys-dwc-arc-processors/synopsys-caffe-models/caffe_models/"


@dataclass(frozen=True)
class Published:
    """A net: where it is published, what it needs beyond Caffe 1.0, and a size at which it is quick to check."""

    path: str
    needs: str
    inputs: str = ""


NETS = {
    "Cascade R-CNN (AlexNet)": Published(
        "zhaoweicai/cascade-rcnn/examples/voc/alex-9s-600-rpn-cascade/deploy.prototxt",
        "BoxGroupOutput, DecodeBBox",
        "data=1,3,150,200",
    ),
    "Cascade R-CNN (ResNet-50, FPN)": Published(
        "zhaoweicai/cascade-rcnn/examples/coco/res50-15s-800-fpn-cascade/deploy.prototxt",
        "ScaleRoute, ROIAlign of corners",
        "data=1,3,128,160",
    ),
    "MS-CNN (Caltech)": Published(
        "zhaoweicai/mscnn/examples/caltech/mscnn-7s-480-2x/mscnn_deploy.prototxt", "pad_ratio", "data=1,3,96,128"
    ),
    "FaceBoxes": Published(
        "sfzhang15/FaceBoxes/models/faceboxes/deploy.prototxt", "densified priors", "data=1,3,128,192"
    ),
    "TextBoxes++": Published("MhLiao/TextBoxes_plusplus/models/deploy.prototxt", "polygons", "data=1,3,320,384"),
    "PWC-Net": Published(
        "NVlabs/PWC-Net/Caffe/benchmark_time/pwc_net_1024_448_batch1.tpl.prototxt",
        "Warp",
        "img0_nomean_resize=1,3,128,64 img1_nomean_resize=1,3,128,64",
    ),
    "ENet": Published("TimoSaemann/ENet/prototxts/enet_deploy.prototxt", "SpatialDropoutLayer (Python)"),
    "CRF-RNN": Published(
        "torrvision/crfasrnn/python-scripts/TVG_CRFRNN_new_deploy.prototxt", "MultiStageMeanfield", "data=1,3,24,28"
    ),
    "MobileNet v2 of TensorFlow": Published(
        SYNOPSYS + "mobilenet/caffe_model/mobilenet_v2_1.0_224.prototxt", "pad_type beside pads"
    ),
    "MobileNet-SSD": Published(
        SYNOPSYS + "mobilenet_ssd/caffe_model/MobileNetSSD_deploy_updated.prototxt", "no_permute"
    ),
    "YOLO v2 (VOC)": Published(SYNOPSYS + "yolo_v2_voc/caffe_model/yolo_voc.prototxt", "darknet_reorg (Python)"),
    "YOLO v3 tiny": Published(SYNOPSYS + "yolo_v3/caffe_model/yolov3-tiny.prototxt", "add_eps_before_sqrt"),
    "ResNet-50 v2 of TensorFlow": Published(
        SYNOPSYS + "resnet_50/caffe_model/resnet_v2_50_convert.prototxt", "PadTensor (Python)"
    ),
}


def draw(ported: Ported) -> None:
    """Weights that keep the size of numbers, and statistics and factors around 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, blob in ported.net.state_dict().items():
            if not blob.is_floating_point():
                continue
            kind = name.rpartition(".")[2]
            if kind == "scale_factor":
                blob.fill_(1)
            elif kind == "variance" or (kind == "weight" and blob.dim() == 1):
                blob.uniform_(0.5, 1.2, generator=generator)
            elif blob.dim() > 1:
                blob.normal_(0, blob[0].numel() ** -0.5, generator=generator)
            else:
                blob.normal_(0, 0.1, generator=generator)


def row(name: str, root: Path, verify: bool = True) -> str:
    """What became of a net, as a row of the table."""
    net = NETS[name]
    start = time.perf_counter()
    shapes = {}
    for one in net.inputs.split():
        blob, _, dims = one.partition("=")
        shapes = {blob: tuple(map(int, dims.split(",")))}
    try:
        ported = port(root / net.path, input_shapes=shapes)
        draw(ported)
        with tempfile.TemporaryDirectory() as folder:
            convert(ported, Path(folder) / "out")
            lines = len((Path(folder) / "out/model.py").read_text().splitlines())
        written = f"{lines:,} lines"
        if not verify:
            return f"| {name} | `{net.path}` | {net.needs} | {written} | not tried |"
        report = caffe_port.verify(ported)
        verdict = f"{report.word}, {report.compared} tops"
        if report.not_compared:
            verdict += f"; {report.not_compared} not compared"
        if report.failed:
            verdict += f"; {report.failed} differ: {report.broken[0].layer}"
    except CaffePortError as error:
        written, verdict = "refused", str(error).splitlines()[0]
    sys.stderr.write(f"{name}: {time.perf_counter() - start:.0f} s\n")
    return f"| {name} | `{net.path}` | {net.needs} | {written} | {verdict} |"


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("nets", nargs="*", metavar="NET")
    parser.add_argument("--convert-only", action="store_true", help="do not verify: seconds a net, not minutes")
    args = parser.parse_args()
    for name in args.nets or NETS:
        sys.stdout.write(row(name, args.folder, not args.convert_only) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
