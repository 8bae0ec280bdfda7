"""Offsets of Crop layers that give none: published ones, and that a crop shows the place it is laid beside."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import caffe_port
from caffe_port.definition.definition import Definition
from caffe_port.emit.convert import convert
from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.inspection import inspect
from caffe_port.spec import NetSpec

IMAGE = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: [2, 1, 160, 192] } } }\n'


def layer(name: str, type_: str, bottoms: str, more: str = "") -> str:
    blobs = "".join(f' bottom: "{b}"' for b in bottoms.split())
    return f'layer {{ name: "{name}" type: "{type_}"{blobs} top: "{name}" {more} }}\n'


def window(name: str, type_: str, bottom: str, kernel: int, stride: int = 1, pad: int = 0) -> str:
    """Positive weights that are the same on both sides, so that a symmetric image stays symmetric."""
    if type_ == "Pooling":
        return layer(name, type_, bottom, f"pooling_param {{ pool: AVE kernel_size: {kernel} stride: {stride} }}")
    filler = "bilinear" if type_ == "Deconvolution" and kernel > 1 else "constant"
    return layer(
        name,
        type_,
        bottom,
        f"convolution_param {{ num_output: 1 bias_term: false kernel_size: {kernel} "
        f'stride: {stride} pad: {pad} weight_filler {{ type: "{filler}" value: 1 }} }}',
    )


def relu(blob: str) -> str:
    return f'layer {{ name: "{blob}/relu" type: "ReLU" bottom: "{blob}" top: "{blob}" }}\n'


def spec(text: str) -> NetSpec:
    return Definition.parse(prototxt.parse(text, "NetParameter"), "net.prototxt").spec()


def offsets(text: str) -> dict[str, list[int]]:
    crops = (one for one in spec(text).layers if one.type in ("Crop", "AutoCrop"))
    return {one.name: list(one.param.crop_param.offset) for one in crops}


def hed(crop: str = "Crop") -> str:
    """Side outputs of five stages over a trunk that begins with pad 35, as HED's."""
    text, trunk = IMAGE, "data"
    for stage in range(1, 6):
        if stage > 1:
            text += window(f"pool{stage - 1}", "Pooling", trunk, 2, 2)
            trunk = f"pool{stage - 1}"
        text += window(f"conv{stage}", "Convolution", trunk, 3, 1, 35 if stage == 1 else 1) + relu(f"conv{stage}")
        trunk = f"conv{stage}"
        text += window(f"score{stage}", "Convolution", trunk, 1)
        side, stride = f"score{stage}", 2 ** (stage - 1)
        if stage > 1:
            text += window(f"up{stage}", "Deconvolution", side, 2 * stride, stride)
            side = f"up{stage}"
        text += layer(f"crop{stage}", crop, f"{side} data")
    return text + layer("fused", "Concat", " ".join(f"crop{stage}" for stage in range(1, 6)))


HED_OFFSETS = {"crop1": [34], "crop2": [35], "crop3": [36], "crop4": [38], "crop5": [42]}


def test_hed() -> None:
    net = spec(hed())
    assert offsets(hed()) == HED_OFFSETS
    (note,) = net.notes
    assert note == (
        "Crop layers without crop_param use the offset implied by the layers before them, as in forks older than "
        "Caffe 1.0: 'crop1' 34, 'crop2' 35, 'crop3' 36, 'crop4' 38, 'crop5' 42. Caffe 1.0 itself uses 0; "
        "set `crop_param { offset: 0 }` for that"
    )


def test_autocrop_is_the_same_without_a_word_of_caffe() -> None:
    assert offsets(hed("AutoCrop")) == HED_OFFSETS
    (note,) = spec(hed("AutoCrop")).notes
    assert note.startswith("AutoCrop layers use the offset")
    assert "'crop3' 36, 'crop4' 38" in note
    assert "Caffe 1.0" not in note


def centres(y: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) to the centre of mass of each plane, (N, C, 2)."""
    down, across = (torch.arange(n, dtype=y.dtype) for n in y.shape[2:])
    mass = y.sum((2, 3))
    return torch.stack(((y.sum(3) * down).sum(2) / mass, (y.sum(2) * across).sum(2) / mass), 2)


@pytest.mark.parametrize("crop", ["Crop", "AutoCrop"])
def test_every_side_output_shows_what_is_where_it_is_shown(tmp_path: Path, crop: str) -> None:
    """Squares of 16 pixels that fill a pixel of the last stage keep their place in all five side outputs."""
    path = tmp_path / "hed.prototxt"
    path.write_text(hed(crop))
    net = caffe_port.load(path).double()
    x = torch.zeros(2, 1, 160, 192, dtype=torch.float64)
    x[0, 0, 62:78, 94:110] = 1  # place 14 of the image is 14 + 34 = 3 * 16 behind the first convolution
    x[1, 0, 78:94, 78:94] = 1
    with torch.no_grad():
        y = net(x)
    assert y.shape == (2, 5, 160, 192)
    want = torch.tensor([[69.5, 101.5], [85.5, 85.5]], dtype=torch.float64)[:, None].expand(2, 5, 2)
    torch.testing.assert_close(centres(y), want, rtol=0, atol=1e-9)


def fcn(stride: int, type_: str = "Crop") -> str:
    """FCN-32s, 16s or 8s: VGG's pools behind pad 100, a 7 x 7 fc6, skips from pool4 and pool3."""
    text = IMAGE + window("conv1", "Convolution", "data", 3, 1, 100)
    for stage in range(1, 6):
        text += window(f"pool{stage}", "Pooling", f"conv{stage}" if stage == 1 else f"pool{stage - 1}", 2, 2)
    text += window("score_fr", "Convolution", "pool5", 7)
    if stride == 32:
        return text + window("up", "Deconvolution", "score_fr", 64, 32) + layer("score", type_, "up data")
    text += window("upscore2", "Deconvolution", "score_fr", 4, 2) + window("score_pool4", "Convolution", "pool4", 1)
    text += layer("score_pool4c", type_, "score_pool4 upscore2")
    text += layer("fuse_pool4", "Eltwise", "upscore2 score_pool4c")
    if stride == 16:
        return text + window("up", "Deconvolution", "fuse_pool4", 32, 16) + layer("score", type_, "up data")
    text += window("upscore4", "Deconvolution", "fuse_pool4", 4, 2) + window("score_pool3", "Convolution", "pool3", 1)
    text += layer("score_pool3c", type_, "score_pool3 upscore4")
    text += layer("fuse_pool3", "Eltwise", "upscore4 score_pool3c")
    return text + window("up", "Deconvolution", "fuse_pool3", 16, 8) + layer("score", type_, "up data")


@pytest.mark.parametrize(
    ("stride", "published"),
    [
        (32, {"score": [19]}),
        (16, {"score_pool4c": [5], "score": [27]}),
        (8, {"score_pool4c": [5], "score_pool3c": [9], "score": [31]}),
    ],
)
def test_fcn_has_the_offsets_of_its_published_definitions(stride: int, published: dict[str, list[int]]) -> None:
    assert offsets(fcn(stride)) == published


def test_the_first_form_of_layers() -> None:
    text = """
    input: "data" input_dim: [2, 3, 40, 50]
    layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv"
             convolution_param { num_output: 4 kernel_size: 3 pad: 9 } }
    layers { name: "crop" type: CROP bottom: "conv" bottom: "data" top: "crop" }
    """
    assert offsets(text) == {"crop": [8]}


def test_u_net_takes_the_middle() -> None:
    """What the way down gives to the way up, as the paper draws it: 64 to 56, 136 to 104, 280 to 200, 568 to 392."""
    text, x = IMAGE.replace("160, 192", "572, 572"), "data"
    for level in range(5):
        if level:
            text += window(f"pool{level}", "Pooling", x, 2, 2)
            x = f"pool{level}"
        text += window(f"a{level}", "Convolution", x, 3) + window(f"down{level}", "Convolution", f"a{level}", 3)
        x = f"down{level}"
    for level in (3, 2, 1, 0):
        text += window(f"up{level}", "Deconvolution", x, 2, 2) + layer(f"crop{level}", "Crop", f"down{level} up{level}")
        text += layer(f"both{level}", "Concat", f"up{level} crop{level}") + window(
            f"b{level}", "Convolution", f"both{level}", 3
        )
        text += window(f"c{level}", "Convolution", f"b{level}", 3)
        x = f"c{level}"
    assert offsets(text) == {
        f"crop{level}": [(big - small) // 2]
        for level, big, small in ((3, 64, 56), (2, 136, 104), (1, 280, 200), (0, 568, 392))
    }


def test_height_and_width_for_themselves() -> None:
    conv = "convolution_param { num_output: 2 kernel_h: 3 kernel_w: 5 pad_h: 4 pad_w: 9 hole_w: 2 }"
    text = IMAGE + layer("conv", "Convolution", "data", conv) + layer("crop", "Crop", "conv data")
    assert offsets(text) == {"crop": [3, 5]}
    assert "'crop' 3 x 5" in spec(text).notes[0]


@pytest.mark.parametrize("crop", ["crop_param { }", "crop_param { offset: 0 }", "crop_param { axis: 2 }"])
def test_what_the_file_says_is_kept(crop: str) -> None:
    text = IMAGE + window("conv", "Convolution", "data", 3, 1, 7) + layer("crop", "Crop", "conv data", crop)
    assert spec(text).notes == ()
    assert spec(text).by_name["crop"].param == prototxt.parse(
        layer("crop", "Crop", "conv data", crop).removeprefix("layer {").rstrip().removesuffix("}"), "LayerParameter"
    )


INTERP = "interp_param { height: 200 width: 210 }"


@pytest.mark.parametrize(
    ("before", "bottoms", "said"),
    [
        (window("up", "Deconvolution", "data", 4, 2), "up data", "one pixel of 'up' is 1/2 pixels of 'data'"),
        (
            window("half", "Convolution", "data", 3, 2, 1) + window("up", "Deconvolution", "half", 4, 2, 1),
            "up data",
            "the layers before it imply offset 1/2, expected an integer",
        ),
        (window("conv", "Convolution", "data", 5), "conv data", "the layers before it imply offset -2, expected"),
        (layer("big", "Interp", "data", INTERP), "big data", "layer 'big' (Interp): its pixel mapping is unknown"),
        (IMAGE.replace("data", "other"), "data other", "'data' and 'other'"),
    ],
)
def test_where_no_offset_follows(before: str, bottoms: str, said: str) -> None:
    """AutoCrop is refused there, and Crop begins at 0 as in Caffe 1.0."""
    text = IMAGE + before
    assert offsets(text + layer("crop", "Crop", bottoms)) == {"crop": []}
    assert spec(text + layer("crop", "Crop", bottoms)).notes == ()
    with pytest.raises(SpecError) as caught:
        spec(text + layer("crop", "AutoCrop", bottoms))
    assert said in str(caught.value)
    assert caught.value.hint == "Set the offset in the file: crop_param { offset: ... }"
    assert offsets(text + layer("crop", "AutoCrop", bottoms, "crop_param { offset: 3 }")) == {"crop": [3]}


@pytest.mark.parametrize("crop", ["Crop", "AutoCrop"])
def test_inspect_convert_and_verify_agree(tmp_path: Path, crop: str) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(fcn(16, crop))
    notes = caffe_port.port(path).notes
    assert any("'score_pool4c' 5, 'score' 27" in note for note in notes)
    assert any("'score' 27" in note for note in inspect.inspect_file(path).notes)
    report = caffe_port.verify(path, against="numpy")
    assert report.passed
    assert [row.layer for row in report.rows if row.type == crop] == ["score_pool4c", "score"]
    convert(caffe_port.port(path), tmp_path / "port")
    assert "27:27 + " in (tmp_path / "port" / "model.py").read_text()
