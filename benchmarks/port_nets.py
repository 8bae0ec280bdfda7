"""Nets and hand-written ports of them, each with a switch for its mistakes: ``slip`` is the name of one.

port_cases.py lists what is right and what is wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _input(*sizes: int, name: str = "data") -> str:
    dims = " ".join(f"dim: {n}" for n in sizes)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'


def _layer(name: str, type_: str, bottoms: str, rest: str = "", tops: str = "") -> str:
    ends = "".join(f' bottom: "{b}"' for b in bottoms.split())
    ends += "".join(f' top: "{t}"' for t in (tops or name).split())
    return f'layer {{ name: "{name}" type: "{type_}"{ends} {rest} }}\n'


def _conv(name: str, bottom: str, out: int, rest: str, type_: str = "Convolution") -> str:
    told = f'num_output: {out} {rest} weight_filler {{ type: "msra" }}'
    return _layer(name, type_, bottom, f"convolution_param {{ {told} }}")


def _relu(name: str, blob: str) -> str:
    return _layer(name, "ReLU", blob, tops=blob)


def _fc(name: str, bottom: str, out: int, rest: str = "") -> str:
    told = f'num_output: {out} {rest} weight_filler {{ type: "xavier" }}'
    return _layer(name, "InnerProduct", bottom, f"inner_product_param {{ {told} }}")


def _bn(name: str, blob: str, eps: str = "") -> str:
    return _layer(f"bn_{name}", "BatchNorm", blob, f"batch_norm_param {{ {eps} }}", blob) + _layer(
        f"scale_{name}", "Scale", blob, "scale_param { bias_term: true }", blob
    )


# -- a residual net ---------------------------------------------------------------------------------------------------

RESNET = (
    'name: "res"\n'
    + _input(2, 3, 39, 47)
    + _conv("conv1", "data", 8, "kernel_size: 5 pad: 2 stride: 2")
    + _bn("conv1", "conv1")
    + _relu("relu1", "conv1")
    + _layer("pool1", "Pooling", "conv1", "pooling_param { pool: MAX kernel_size: 3 stride: 2 }")
    + _conv("a1", "pool1", 8, "kernel_size: 3 pad: 1 bias_term: false")
    + _bn("a1", "a1")
    + _relu("relu_a1", "a1")
    + _conv("a2", "a1", 8, "kernel_size: 3 pad: 1 bias_term: false")
    + _bn("a2", "a2")
    + _layer("add_a", "Eltwise", "pool1 a2", "eltwise_param { operation: SUM }")
    + _relu("relu_a", "add_a")
    + _conv("proj", "add_a", 12, "kernel_size: 1 stride: 2 bias_term: false")
    + _bn("proj", "proj")
    + _conv("b1", "add_a", 12, "kernel_size: 3 pad: 1 stride: 2 bias_term: false")
    + _bn("b1", "b1")
    + _relu("relu_b1", "b1")
    + _conv("b2", "b1", 12, "kernel_size: 3 pad: 1 bias_term: false")
    + _bn("b2", "b2")
    + _layer("add_b", "Eltwise", "proj b2", "eltwise_param { operation: SUM }")
    + _relu("relu_b", "add_b")
    + _layer("pool5", "Pooling", "add_b", "pooling_param { pool: AVE global_pooling: true }")
    + _fc("fc", "pool5", 9)
    + _layer("prob", "Softmax", "fc")
)


def _hand_norm(x: Tensor, norm: nn.BatchNorm2d, slip: str) -> Tensor:
    mean, variance = (t.view(1, -1, 1, 1) for t in (norm.running_mean, norm.running_var))  # type: ignore[union-attr]
    weight, bias = norm.weight.view(1, -1, 1, 1), norm.bias.view(1, -1, 1, 1)
    if slip == "std":
        return (x - mean) / (variance + norm.eps) * weight + bias
    return (x - mean) / torch.sqrt(variance + norm.eps) * weight + bias


class Block(nn.Module):
    def __init__(self, i: int, o: int, stride: int, slip: str) -> None:
        super().__init__()
        self.slip = slip
        first, second = (1, stride) if slip == "stride place" and stride > 1 else (stride, 1)
        self.c1, self.n1 = nn.Conv2d(i, o, 3, first, 1, bias=False), nn.BatchNorm2d(o)
        self.c2, self.n2 = nn.Conv2d(o, o, 3, second, 1, bias=False), nn.BatchNorm2d(o)
        self.down = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.down is None else self.down(x)
        if self.slip == "norm by hand":
            y = F.relu(_hand_norm(self.c1(x), self.n1, ""))
        elif self.slip == "no inner relu" and self.down is not None:
            y = self.n1(self.c1(x))
        else:
            y = F.relu(self.n1(self.c1(x)))
        y = self.n2(self.c2(y))
        if self.slip == "no shortcut" and self.down is None:
            return F.relu(y)
        if self.slip == "relu before sum" and self.down is not None:
            return F.relu(y) + short
        if self.slip == "subtracted" and self.down is None:
            return F.relu(short - y)
        if self.slip == "no relu after sum" and self.down is None:
            return y + short
        return F.relu(torch.add(y, short) if self.slip == "torch.add" else y + short)


class Res(nn.Module):
    def __init__(self, slip: str = "", eps: float = 1e-5) -> None:
        super().__init__()
        self.slip = slip
        self.stem, self.norm = nn.Conv2d(3, 8, 5, 2, 2), nn.BatchNorm2d(8, eps)
        self.a, self.b = Block(8, 8, 1, slip), Block(8, 12, 2, slip)
        self.fc = nn.Linear(12, 9)

    def forward(self, x: Tensor) -> Any:
        slip = self.slip
        if slip == "255":
            x = x * (1 / 255)
        if slip == "mean":
            x = x - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        if slip == "imagenet":
            x = (x - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor([0.2, 0.22, 0.25]).view(
                1, 3, 1, 1
            )
        if slip == "rgb":
            x = x.flip(1)
        if slip == "nhwc" and x.shape[1] == 3:
            x = x.transpose(2, 3)
        if slip == "clamp":
            x = x.clamp(0, 1)
        if slip == "in place":
            x.sub_(0.5).mul_(2)
        x = self.stem(x)
        if slip == "bfloat16":
            x = x.bfloat16().float()
        x = F.relu(self.norm(x))
        if slip == "floor":
            x = F.max_pool2d(x, 3, 2)
        elif slip == "pad pool":
            x = F.max_pool2d(x, 3, 2, 1)
        elif slip == "average":
            x = F.avg_pool2d(x, 3, 2, ceil_mode=True)
        else:
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        x = self.b(self.a(x))
        if slip == "max global":
            x = x.amax((2, 3))
        elif slip == "mean":
            x = x.mean((2, 3))
        elif slip in ("", "norm by hand"):
            x = x.mean(dim=[2, 3])
        elif slip == "sum global":
            x = x.sum((2, 3))
        else:
            x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        x = self.fc(x)
        if slip == "logits":
            return x
        if slip == "sigmoid":
            return torch.sigmoid(x)
        if slip == "softmax by hand":
            e = torch.exp(x - x.max(1, keepdim=True)[0])
            return e / e.sum(1, keepdim=True)
        x = F.softmax(x, 1)
        if slip == "argmax":
            return x.argmax(1)
        if slip == "reversed":
            return x.flip(1)
        if slip == "rounded":
            return x.round()
        if slip == "log at end":
            return torch.log(x)
        if slip == "dict":
            return {"features": self.fc.weight, "prob": x}
        if slip == "background":
            return x[:, 1:]
        return x


# -- a net of the kind of VGG -----------------------------------------------------------------------------------------

VGG = (
    'name: "vgg"\n'
    + _input(2, 3, 33, 29)
    + _conv("conv1_1", "data", 8, "kernel_size: 3 pad: 1")
    + _relu("relu1_1", "conv1_1")
    + _conv("conv1_2", "conv1_1", 8, "kernel_size: 3 pad: 1")
    + _relu("relu1_2", "conv1_2")
    + _layer("norm1", "LRN", "conv1_2", "lrn_param { local_size: 5 alpha: 0.5 beta: 0.75 }")
    + _layer("pool1", "Pooling", "norm1", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    + _conv("conv2_1", "pool1", 12, "kernel_size: 3 pad: 1 group: 2")
    + _relu("relu2_1", "conv2_1")
    + _conv("conv2_2", "conv2_1", 12, "kernel_size: 3 pad: 2 dilation: 2")
    + _layer("relu2_2", "ReLU", "conv2_2", "relu_param { negative_slope: 0.1 }", "conv2_2")
    + _layer("pool2", "Pooling", "conv2_2", "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }")
    + _fc("fc6", "pool2", 16)
    + _relu("relu6", "fc6")
    + _layer("drop6", "Dropout", "fc6", "dropout_param { dropout_ratio: 0.5 }", "fc6")
    + _fc("fc7", "fc6", 16)
    + _relu("relu7", "fc7")
    + _layer("drop7", "Dropout", "fc7", "dropout_param { dropout_ratio: 0.5 }", "fc7")
    + _fc("fc8", "fc7", 6)
    + _layer("prob", "Softmax", "fc8")
)


def _lrn_by_pool(x: Tensor, alpha: float = 0.5, k: float = 1.0) -> Tensor:
    squares = F.avg_pool3d(F.pad(x.pow(2).unsqueeze(1), (0, 0, 0, 0, 2, 2)), (5, 1, 1), stride=1).squeeze(1)
    return x / (k + alpha * squares).pow(0.75)


def _lrn_by_sum(x: Tensor) -> Tensor:
    wide = F.pad(x * x, (0, 0, 0, 0, 2, 2))
    total = sum(wide[:, n : n + x.shape[1]] for n in range(5))
    return x / (1 + 0.1 * total) ** 0.75


class Vgg(nn.Module):
    def __init__(self, slip: str = "") -> None:
        super().__init__()
        self.slip = slip
        self.c11, self.c12 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        if slip == "two convolutions":
            self.c21a, self.c21b = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        else:
            self.c21 = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        dilation, padding = (1, 1) if slip == "dilation" else (2, 1) if slip == "padding of dilation" else (2, 2)
        self.c22 = nn.Conv2d(12, 12, 3, padding=padding, dilation=dilation)
        h = 9 * 8
        if slip == "padding of dilation":
            h = 8 * 7
        if slip == "fc as convolution":
            self.fc6 = nn.Conv2d(12, 16, (9, 8))
        elif slip == "weight (in, out)":
            self.w6, self.b6 = nn.Parameter(torch.zeros(12 * h, 16)), nn.Parameter(torch.zeros(16))
        else:
            self.fc6 = nn.Linear(12 * h, 16)
        self.fc7, self.fc8 = nn.Linear(16, 16), nn.Linear(16, 6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Any:
        slip = self.slip
        x = F.relu(self.c11(x))
        x = F.relu_(self.c12(x))
        if slip == "lrn alpha":
            x = F.local_response_norm(x, 5, 0.5 * 5, 0.75, 1.0)
        elif slip == "lrn k":
            x = F.local_response_norm(x, 5, 0.5, 0.75, 2.0)
        elif slip == "lrn by pool":
            x = _lrn_by_pool(x)
        elif slip == "lrn by pool, k":
            x = _lrn_by_pool(x, k=2.0)
        elif slip == "lrn by sum":
            x = _lrn_by_sum(x)
        elif slip == "no lrn":
            pass
        elif slip == "lrn after pool":
            x = F.local_response_norm(F.max_pool2d(x, 2, ceil_mode=True), 5, 0.5, 0.75, 1.0)
        else:
            x = F.local_response_norm(x, 5, 0.5, 0.75, 1.0)
        if slip != "lrn after pool":
            x = F.max_pool2d(x, 2, 2, ceil_mode=slip != "floor")
        two = slip == "two convolutions"
        x = torch.cat([self.c21a(x[:, :4]), self.c21b(x[:, 4:])], 1) if two else self.c21(x)
        x = x.clamp(min=0) if slip == "relu as clamp" else x * (x > 0) if slip == "relu as mask" else F.relu(x)
        x = self.c22(x)
        if slip == "slope":
            x = F.leaky_relu(x, 0.01)
        elif slip == "plain relu":
            x = F.relu(x)
        elif slip == "leaky as max":
            x = torch.max(x, 0.1 * x)
        elif slip == "leaky as where":
            x = torch.where(x > 0, x, x * 0.1)
        else:
            x = F.leaky_relu(x, 0.1)
        if slip == "count include pad":
            x = F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)
        elif slip == "max for average":
            x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        else:
            x = F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)
        if slip == "hwc":
            x = x.permute(0, 2, 3, 1)
        if slip == "hwc contiguous":
            x = x.transpose(1, 3)
        if slip == "fc as convolution":
            x = self.fc6(x).flatten(1)
        elif slip == "weight (in, out)":
            x = x.reshape(x.shape[0], -1) @ self.w6 + self.b6
        elif slip == "addmm":
            x = torch.addmm(self.fc6.bias, x.flatten(1), self.fc6.weight.t())
        elif slip == "einsum":
            x = torch.einsum("nk,ok->no", x.flatten(1), self.fc6.weight) + self.fc6.bias
        else:
            x = self.fc6(x.reshape(x.shape[0], -1))
        x = F.relu(x)
        if slip == "dropout on":
            x = F.dropout(x, 0.5, True)
        elif slip == "dropout scales":
            x = x * 0.5
        else:
            x = self.drop(x)
        x = F.relu(F.linear(x, self.fc7.weight) if slip == "shared fc" else self.fc7(x))
        x = self.fc8(self.drop(x))
        if slip == "temperature":
            x = x / 2
        return torch.softmax(x, 0 if slip == "axis" else -1)


# -- branches with kernels that are not square ------------------------------------------------------------------------

INCEPTION = (
    'name: "inception"\n'
    + _input(2, 3, 31, 40)
    + _conv("stem", "data", 10, "kernel_h: 3 kernel_w: 5 pad_h: 1 pad_w: 2 stride_h: 2 stride_w: 1")
    + _relu("stem_relu", "stem")
    + _conv("b1", "stem", 6, "kernel_size: 1")
    + _relu("b1_relu", "b1")
    + _conv("b2a", "stem", 6, "kernel_size: 1")
    + _relu("b2a_relu", "b2a")
    + _conv("b2b", "b2a", 6, "kernel_h: 1 kernel_w: 5 pad_h: 0 pad_w: 2")
    + _relu("b2b_relu", "b2b")
    + _conv("b2c", "b2b", 6, "kernel_h: 5 kernel_w: 1 pad_h: 2 pad_w: 0")
    + _relu("b2c_relu", "b2c")
    + _conv("b3a", "stem", 6, "kernel_size: 1")
    + _relu("b3a_relu", "b3a")
    + _conv("b3b", "b3a", 6, "kernel_size: 3 pad: 1")
    + _relu("b3b_relu", "b3b")
    + _layer("bpool", "Pooling", "stem", "pooling_param { pool: AVE kernel_size: 3 stride: 1 pad: 1 }")
    + _conv("b4", "bpool", 6, "kernel_size: 1")
    + _relu("b4_relu", "b4")
    + _layer("cat", "Concat", "b1 b2c b3b b4")
    + _layer("down", "Pooling", "cat", "pooling_param { pool: MAX kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 3 }")
    + _layer("halves", "Slice", "down", "slice_param { axis: 1 slice_point: 10 }", "left right")
    + _conv("lc", "left", 7, "kernel_size: 1")
    + _conv("rc", "right", 7, "kernel_size: 1")
    + _layer("gate", "Sigmoid", "rc", tops="rc")
    + _layer("prod", "Eltwise", "lc rc", "eltwise_param { operation: PROD }")
    + _layer("glob", "Pooling", "prod", "pooling_param { pool: MAX global_pooling: true }")
    + _fc("score", "glob", 5)
    + _fc("box", "glob", 4)
    + _layer("prob", "Softmax", "score")
)


class Inception(nn.Module):
    def __init__(self, slip: str = "", order: str = "1234") -> None:
        super().__init__()
        self.slip, self.order = slip, order
        stride = (1, 2) if slip == "stride swapped" else (2, 1)
        pad = (2, 1) if slip == "pad swapped" else (1, 1) if slip == "pad of one axis" else (1, 2)
        self.stem = nn.Conv2d(3, 10, (3, 5), stride, pad)
        self.b1, self.b2a, self.b3a, self.b4 = (nn.Conv2d(10, 6, 1) for _ in range(4))
        self.b2b, self.b2c = nn.Conv2d(6, 6, (1, 5), padding=(0, 2)), nn.Conv2d(6, 6, (5, 1), padding=(2, 0))
        self.b3b = nn.Conv2d(6, 6, 3, padding=1)
        self.lc, self.rc = nn.Conv2d(10, 7, 1), nn.Conv2d(14, 7, 1)
        if slip in ("slice point", "halves"):
            n = 12
            self.lc, self.rc = nn.Conv2d(n, 7, 1), nn.Conv2d(24 - n, 7, 1)
        self.score, self.box = nn.Linear(7, 5), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Any:
        slip = self.slip
        x = F.relu(self.stem(x))
        parts = {}
        for branch in self.order:
            if branch == "1":
                parts["1"] = F.relu(self.b1(x))
            elif branch == "2":
                y = F.relu(self.b2a(x))
                y = self.b2b(y) if slip == "no relu" else F.relu(self.b2b(y))
                parts["2"] = F.relu(self.b2c(y))
            elif branch == "3":
                y = F.relu(self.b3a(parts["1"].mean(1, keepdim=True).expand_as(x) if slip == "odd" else x))
                parts["3"] = F.relu(self.b3b(y))
            else:
                y = F.max_pool2d(x, 3, 1, 1) if slip == "max branch" else F.avg_pool2d(x, 3, 1, 1)
                y = x if slip == "no pool" else y
                parts["4"] = F.relu(self.b4(y))
        names = {"concat": "1324", "rotated": "4123"}.get(slip, "1234")
        x = torch.cat([parts[n] for n in names], 1)
        x = F.max_pool2d(x, (2, 3) if slip == "kernel swapped" else (3, 2), (2, 3), ceil_mode=slip != "floor")
        if slip == "chunk":
            left, right = torch.split(x, [10, 14], dim=1)
        elif slip == "slice swapped":
            left, right = x[:, 14:], x[:, :14]
        elif slip == "halves":
            left, right = x.chunk(2, 1)
        else:
            left, right = x[:, :10], x[:, 10:]
        left, right = self.lc(left), self.rc(right)
        if slip == "gate wrong side":
            x = torch.sigmoid(left) * right
        elif slip == "gate tanh":
            x = left * torch.tanh(right)
        elif slip == "sum for product":
            x = left + torch.sigmoid(right)
        else:
            x = left * torch.sigmoid(right)
        x = x.flatten(2).max(2)[0] if slip == "max by hand" else F.adaptive_max_pool2d(x, 1).flatten(1)
        prob, box = F.softmax(self.score(x), 1), self.box(x)
        if slip == "box doubled":
            box = box * 2
        if slip == "box exp":
            box = torch.cat([box[:, :2], torch.exp(box[:, 2:])], 1)
        if slip == "box order":
            box = box[:, [1, 0, 3, 2]]
        if slip == "threshold":
            prob = (prob > 0.25).float()
        if slip == "prob alone":
            return prob
        return (prob, box) if slip == "prob first" else {"box": box, "prob": prob}


# -- a detector -------------------------------------------------------------------------------------------------------


def _head(name: str, bottom: str, out: int) -> str:
    return (
        _conv(name, bottom, out, "kernel_size: 3 pad: 1")
        + _layer(f"{name}_perm", "Permute", name, "permute_param { order: 0 order: 2 order: 3 order: 1 }")
        + _layer(f"{name}_flat", "Flatten", f"{name}_perm", "flatten_param { axis: 1 }")
    )


SSD = (
    'name: "ssd"\n'
    + _input(2, 3, 41, 35)
    + _conv("c1", "data", 8, "kernel_size: 3 pad: 1 stride: 2")
    + _relu("r1", "c1")
    + _conv("c2", "c1", 10, "kernel_size: 3 pad: 1 stride: 2")
    + _relu("r2", "c2")
    + _layer("norm", "Normalize", "c2", "norm_param { across_spatial: false channel_shared: false "
             'scale_filler { type: "constant" value: 20 } }')
    + _conv("c3", "c2", 12, "kernel_size: 3 pad: 1 stride: 2")
    + _relu("r3", "c3")
    + _head("norm_loc", "norm", 8)
    + _head("norm_conf", "norm", 6)
    + _head("c3_loc", "c3", 8)
    + _head("c3_conf", "c3", 6)
    + _layer("loc", "Concat", "norm_loc_flat c3_loc_flat", "concat_param { axis: 1 }")
    + _layer("conf", "Concat", "norm_conf_flat c3_conf_flat", "concat_param { axis: 1 }")
    + _layer("conf_reshape", "Reshape", "conf", "reshape_param { shape { dim: 0 dim: -1 dim: 3 } }")
    + _layer("conf_softmax", "Softmax", "conf_reshape", "softmax_param { axis: 2 }")
)  # fmt: skip


class Ssd(nn.Module):
    def __init__(self, slip: str = "") -> None:
        super().__init__()
        self.slip = slip
        self.c1, self.c2, self.c3 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 10, 3, 2, 1), nn.Conv2d(10, 12, 3, 2, 1)
        self.gamma = nn.Parameter(torch.full((10,), 20.0))
        self.loc = nn.ModuleList([nn.Conv2d(10, 8, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)])
        self.conf = nn.ModuleList([nn.Conv2d(10, 6, 3, padding=1), nn.Conv2d(12, 6, 3, padding=1)])

    def forward(self, x: Tensor) -> Any:
        slip = self.slip
        x = F.relu(self.c1(x))
        if slip == "same padding":
            x = F.relu(F.conv2d(F.pad(x, (0, 1, 0, 1)), self.c2.weight, self.c2.bias, 2))
        else:
            x = F.relu(self.c2(x))
        deeper = F.relu(self.c3(x))
        if slip == "no norm":
            tap = x
        elif slip == "norm over space":
            tap = x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * self.gamma.view(1, -1, 1, 1)
        elif slip == "norm by hand":
            tap = x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) * self.gamma.view(1, -1, 1, 1)
        elif slip == "norm without scale":
            tap = F.normalize(x, dim=1)
        else:
            tap = F.normalize(x, dim=1) * self.gamma[None, :, None, None]
        if slip == "wrong tap":
            tap = F.relu(self.c2(F.relu(self.c1.bias.view(1, -1, 1, 1).expand(2, 8, 21, 18))))
        taps = [x, deeper] if slip == "tap before norm" else [tap, deeper]
        locs, confs = [], []
        for level, (t, loc, conf) in enumerate(zip(taps, self.loc, self.conf, strict=True)):
            a, b = loc(t), conf(t)
            if not (slip == "no permute" and level == 1):
                a = a.permute(0, 2, 3, 1)
            b = b.permute(0, 3, 2, 1) if slip == "permute order" and level == 0 else b.permute(0, 2, 3, 1)
            locs.append(a.reshape(a.shape[0], -1) if slip != "view 4" else a.reshape(a.shape[0], -1, 4))
            confs.append(b.reshape(b.shape[0], -1))
        if slip == "levels reversed":
            locs = locs[::-1]
        found = torch.cat(locs, 1)
        scores = torch.cat(confs, 1).view(x.shape[0], -1, 3)
        scores = scores.softmax(1 if slip == "softmax axis" else -1)
        if slip == "no softmax":
            scores = torch.cat(confs, 1).view(x.shape[0], -1, 3)
        if slip == "variance":
            found = found * 0.1
        if slip == "no background":
            scores = scores[..., 1:]
        return found, scores


# -- segmentation -----------------------------------------------------------------------------------------------------

FCN = (
    'name: "fcn"\n'
    + _input(2, 3, 41, 38)
    + _conv("conv1", "data", 6, "kernel_size: 3 pad: 10")
    + _relu("relu1", "conv1")
    + _layer("pool1", "Pooling", "conv1", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    + _conv("conv2", "pool1", 8, "kernel_size: 3 pad: 1")
    + _layer("act2", "PReLU", "conv2", 'prelu_param { filler { type: "constant" value: 0.25 } }', "conv2")
    + _layer("pool2", "Pooling", "conv2", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    + _conv("score2", "pool2", 4, "kernel_size: 1")
    + _conv("up2", "score2", 4, "kernel_size: 4 stride: 2 bias_term: false", "Deconvolution")
    + _conv("score1", "pool1", 4, "kernel_size: 1")
    + _layer("crop1", "Crop", "score1 up2", "crop_param { axis: 2 offset: 0 }")
    + _layer("cropped", "Crop", "up2 score1", "crop_param { axis: 2 offset: 1 }")
    + _layer("fuse", "Eltwise", "cropped score1", "eltwise_param { operation: SUM coeff: 1 coeff: 0.01 }")
    + _conv("up1", "fuse", 4, "kernel_size: 4 stride: 2 bias_term: false group: 4", "Deconvolution")
    + _layer("final", "Crop", "up1 data", "crop_param { axis: 2 offset: 9 }")
).replace(_layer("crop1", "Crop", "score1 up2", "crop_param { axis: 2 offset: 0 }"), "")


class Fcn(nn.Module):
    def __init__(self, slip: str = "") -> None:
        super().__init__()
        self.slip = slip
        self.conv1 = nn.Conv2d(3, 6, 3, padding=10)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.act2: nn.Module = nn.PReLU() if slip == "shared" else nn.PReLU(8)
        self.score2, self.score1 = nn.Conv2d(8, 4, 1), nn.Conv2d(6, 4, 1)
        self.up2 = nn.ConvTranspose2d(4, 4, 4, 2, bias=False)
        self.up1 = nn.ConvTranspose2d(4, 4, 4, 2, groups=4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        slip = self.slip
        h, w = x.shape[2:]
        if slip == "pad by hand":
            y = F.relu(F.conv2d(F.pad(x, (10, 10, 10, 10)), self.conv1.weight, self.conv1.bias))
        elif slip == "reflect":
            y = F.relu(F.conv2d(F.pad(x, (10, 10, 10, 10), mode="reflect"), self.conv1.weight, self.conv1.bias))
        else:
            y = F.relu(self.conv1(x))
        p1 = F.max_pool2d(y, 2, 2, ceil_mode=True)
        y = self.conv2(p1)
        if slip == "prelu by hand":
            y = y.clamp(min=0) + self.act2.weight.view(1, -1, 1, 1) * y.clamp(max=0)  # type: ignore[operator, union-attr]
            y = F.max_pool2d(y, 2, 2, ceil_mode=True)
        elif slip == "pool first":
            y = self.act2(F.max_pool2d(y, 2, 2, ceil_mode=True))
        elif slip == "floor":
            y = F.max_pool2d(self.act2(y), 2, 2)
        elif slip == "no prelu":
            y = F.max_pool2d(y, 2, 2, ceil_mode=True)
        elif slip == "leaky":
            y = F.max_pool2d(F.leaky_relu(y, 0.1), 2, 2, ceil_mode=True)
        else:
            y = F.max_pool2d(self.act2(y), 2, 2, ceil_mode=True)
        y = self.up2(self.score2(y))
        if slip == "skip before pool":
            s = self.score1(F.relu(self.conv1(x))[:, :, ::2, ::2])
        elif slip == "skip in place":
            p1 *= 0.5
            s = self.score1(p1)
        else:
            s = self.score1(p1)
        o = 0 if slip == "crop offset" else 1
        y = y[:, :, o : o + s.shape[2], o : o + s.shape[3]]
        if slip == "coefficient":
            y = y + s
        elif slip == "coefficients swapped":
            y = 0.01 * y + s
        elif slip == "order of sum":
            y = 0.01 * s + y
        else:
            y = torch.add(y, s, alpha=0.01)
        y = self.up1(y)
        o = 8 if slip == "last offset" else 9
        if slip == "narrow":
            return y.narrow(2, 9, h).narrow(3, 9, w)
        if slip == "center":
            a, b = (y.shape[2] - h) // 2, (y.shape[3] - w) // 2
            return y[:, :, a : a + h, b : b + w]
        y = y[:, :, o : o + h, o : o + w]
        if slip == "bchw to bhwc":
            return y.permute(0, 2, 3, 1)
        if slip == "argmax":
            return y.argmax(1).float()
        if slip == "softmax":
            return y.softmax(1)
        if slip == "sigmoid":
            return y.sigmoid()
        if slip == "no crop":
            return self.up1(torch.add(y[:, :, :22, :20], 0))
        return y


# -- a recurrent net --------------------------------------------------------------------------------------------------

RECURRENT = (
    'name: "rnn"\n'
    + _input(6, 3, 5)
    + _input(6, 3, name="cont")
    + _layer("lstm", "LSTM", "data cont", 'recurrent_param { num_output: 4 weight_filler { type: "xavier" } '
             'bias_filler { type: "uniform" min: -0.5 max: 0.5 } }')
    + _fc("fc", "lstm", 7, "axis: 2")
    + _layer("prob", "Softmax", "fc", "softmax_param { axis: 2 }")
)  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self, slip: str = "") -> None:
        super().__init__()
        self.slip = slip
        self.wx, self.bx = nn.Parameter(torch.zeros(16, 5)), nn.Parameter(torch.zeros(16))
        self.wh = nn.Parameter(torch.zeros(16, 4))
        self.fc = nn.Linear(4, 7)

    def forward(self, x: Tensor, cont: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[1], 4)
        c = x.new_zeros(x.shape[1], 4)
        made = []
        for t in range(x.shape[0]):
            keep = cont[t].unsqueeze(1) if self.slip != "no reset" else torch.ones_like(cont[t]).unsqueeze(1)
            h = h * keep
            gates = F.linear(x[t], self.wx, self.bx) + F.linear(h, self.wh)
            i, f, o, g = gates.chunk(4, 1)
            if self.slip == "gate order":
                i, f, g, o = gates.chunk(4, 1)
            c = keep * torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            made.append(h)
        y = self.fc(torch.stack(made))
        return F.softmax(y, 1 if self.slip == "axis" else 2)


# -- a small net of depthwise convolutions ----------------------------------------------------------------------------

MOBILE = (
    'name: "mobile"\n'
    + _input(2, 3, 30, 26)
    + _conv("conv1", "data", 8, "kernel_size: 3 pad: 1 stride: 2 bias_term: false")
    + _bn("conv1", "conv1", "eps: 1e-3")
    + _layer("relu1", "ReLU6", "conv1", tops="conv1")
    + _conv("dw2", "conv1", 8, "kernel_size: 3 pad: 1 group: 8 bias_term: false")
    + _bn("dw2", "dw2", "eps: 1e-3")
    + _layer("relu2", "ReLU6", "dw2", tops="dw2")
    + _conv("pw2", "dw2", 12, "kernel_size: 1 bias_term: false")
    + _bn("pw2", "pw2", "eps: 1e-3")
    + _conv("pw3", "pw2", 12, "kernel_size: 1 bias_term: false")
    + _bn("pw3", "pw3", "eps: 1e-3")
    + _layer("sum3", "Eltwise", "pw2 pw3", "eltwise_param { operation: SUM }")
    + _layer("max", "Eltwise", "sum3 pw2", "eltwise_param { operation: MAX }")
    + _layer("flat", "Flatten", "max")
    + _fc("emb", "flat", 10)
    + _layer("half", "Power", "emb", "power_param { scale: 0.5 shift: 1 power: 2 }")
    + _layer("age", "InnerProduct", "half", 'inner_product_param { num_output: 3 weight_filler { type: "xavier" } }')
    + _layer("sex", "InnerProduct", "half", 'inner_product_param { num_output: 3 weight_filler { type: "xavier" } }')
    + _layer("sex_prob", "Softmax", "sex")
)


class Mobile(nn.Module):
    def __init__(self, slip: str = "") -> None:
        super().__init__()
        self.slip = slip
        eps = 1e-5 if slip == "eps" else 1e-3

        def block(i: int, o: int, k: int, s: int, g: int, act: bool = True) -> nn.Sequential:
            last: list[nn.Module] = [nn.ReLU() if slip == "relu" else nn.ReLU6(inplace=True)] if act else []
            return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o, eps), *last)

        self.conv1, self.dw2 = block(3, 8, 3, 2, 1), block(8, 8, 3, 1, 8)
        if slip == "no groups":
            self.dw2 = block(8, 8, 3, 1, 1)
        self.pw2, self.pw3 = block(8, 12, 1, 1, 1, slip == "extra relu"), block(12, 12, 1, 1, 1, False)
        self.emb = nn.Linear(12 * 15 * 13, 10)
        self.age, self.sex = nn.Linear(10, 3), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Any:
        slip = self.slip
        y = self.pw2(self.dw2(self.conv1(x)))
        z = self.pw3(y)
        total = y.add(z) if slip != "in place sum" else y.add_(z)
        y = torch.maximum(total, y) if slip != "minimum" else torch.minimum(total, y)
        if slip == "where":
            y = torch.where(total > y, total, y)
        y = self.emb(y.flatten(1))
        if slip == "power order":
            y = (0.5 * (y + 1)) ** 2
        elif slip == "no shift":
            y = (0.5 * y) ** 2
        elif slip == "no power":
            y = 0.5 * y + 1
        elif slip == "power by parts":
            y = y / 2 + 1
            y = y * y
        else:
            y = (0.5 * y + 1).pow(2)
        age, sex = self.age(y), self.sex(y)
        if slip == "outputs of each other":
            age, sex = self.sex(y), self.age(y)
        return age, sex.softmax(1)


NETS = {"res": RESNET, "vgg": VGG, "inception": INCEPTION, "ssd": SSD, "fcn": FCN, "rnn": RECURRENT, "mobile": MOBILE}
