"""NetSpec and coord_map, against what Caffe's own make."""

import copy
import gzip
import subprocess
from pathlib import Path

import pytest
import spec_nets
from google.protobuf.text_format import MessageToString

import caffe_port.pycaffe as caffe
from caffe_port.pycaffe import coord_map
from caffe_port.pycaffe.net_spec import param_name_dict


@pytest.fixture(scope="module")
def made() -> str:
    return "\n".join(spec_nets.texts(caffe, coord_map, MessageToString)) + "\n"


def test_nets_and_maps_are_those_of_caffe(made: str, golden: Path) -> None:
    assert made == gzip.decompress((golden / "pycaffe" / "specs.txt.gz").read_bytes()).decode()


def test_the_golden_is_what_caffe_makes(caffe: Path, golden: Path) -> None:
    command = [str(caffe / "bin/python"), spec_nets.__file__]
    theirs = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd="/").stdout
    assert theirs == gzip.decompress((golden / "pycaffe" / "specs.txt.gz").read_bytes()).decode()


def test_a_field_is_found_by_the_first_message_of_its_type() -> None:
    names = param_name_dict()
    assert names["Convolution"] == "convolution"
    assert names["Pooling"] == "pooling"
    assert names["Normalize"] == "norm"
    assert names["InnerProduct"] == "inner_product"


def test_the_helpers_of_ssd_do_not_hide_blobs() -> None:
    net = caffe.NetSpec()
    net.data = caffe.layers.Input(shape={"dim": [1, 3]})
    net.ip = caffe.layers.InnerProduct(net.data, num_output=2)
    assert net.keys() == ["data", "ip"]
    assert net.vals() == [net.data, net.ip]
    net.update("ip", {"num_output": 5})
    assert net.to_proto().layer[1].inner_product_param.num_output == 5
    net.keys = caffe.layers.ReLU(net.ip)
    assert net.to_proto().layer[2].top == ["keys"]
    del net["keys"]
    assert net.keys() == ["data", "ip"]


def test_a_spec_can_be_copied() -> None:
    net = caffe.NetSpec()
    net.data = caffe.layers.Input(shape={"dim": [1, 3]})
    twin = copy.deepcopy(net)
    twin.relu = caffe.layers.ReLU(twin.data)
    assert net.keys() == ["data"]
    assert [layer.name for layer in twin.to_proto().layer] == ["data", "relu"]


def test_an_empty_list_leaves_a_field_alone() -> None:
    net = caffe.to_proto(caffe.layers.Input(shape=[], loss_weight=[]))
    assert MessageToString(net) == 'layer {\n  name: "Input1"\n  type: "Input"\n  top: "Input1"\n}\n'


def test_a_whole_float_is_an_integer() -> None:
    layers = caffe.layers
    data = layers.Input(shape={"dim": [1, 3.0]})
    conv = layers.Convolution(data, num_output=8 / 2, kernel_size=3, pad=[(3 - 1) / 2])
    made = caffe.to_proto(conv)
    assert list(made.layer[0].input_param.shape[0].dim) == [1, 3]
    assert (made.layer[1].convolution_param.num_output, list(made.layer[1].convolution_param.pad)) == (4, [1])
    with pytest.raises(TypeError):
        caffe.to_proto(layers.Convolution(data, num_output=4.5))
