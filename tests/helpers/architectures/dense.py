"""Nets that say something about every pixel: segmentation and optical flow."""

from __future__ import annotations

from architectures.builder import AROUND_ONE, AROUND_ZERO, Prototxt
from architectures.classification import VGG_STAGES, Shape, vgg_stage

BILINEAR = {"type": "bilinear"}


def upscore(net: Prototxt, name: str, x: str, count: int, kernel: int, stride: int) -> str:
    return net.conv(
        name, x, count, kernel, stride, bias=False, exact=True, kind="Deconvolution", weight_filler=BILINEAR
    )


def fcn8s(net: Prototxt, shape: Shape) -> None:
    """Long, Shelhamer, Darrell 2014, as voc-fcn8s: VGG-16 padded by 100, three scales of scores, cropped and added."""
    data = net.input("data", *shape)
    label = net.input("label", shape[0], 1, *shape[2:], phase="TRAIN")
    x, pools = data, {}
    for number in range(1, 6):
        x = net.pool(f"pool{number}", vgg_stage(net, x, number, 100 if number == 1 else 1), 2, 2)
        pools[number] = x
    x = net.dropout(net.conv_relu("fc6", x, 4096, 7))
    x = net.dropout(net.conv_relu("fc7", x, 4096, 1))
    x = upscore(net, "upscore2", net.conv("score_fr", x, 21, 1, exact=True), 21, 4, 2)
    for number, offset in ((4, 5), (3, 9)):
        skipped = net.conv(f"score_pool{number}", pools[number], 21, 1, exact=True)
        x = net.add(f"fuse_pool{number}", x, net.crop(f"score_pool{number}c", skipped, x, offset))
        x = upscore(net, "upscore_pool4", x, 21, 4, 2) if number == 4 else upscore(net, "upscore8", x, 21, 16, 8)
    net.softmax_loss("loss", net.crop("score", x, data, 31), label, ignore=255)


def unet(net: Prototxt, shape: Shape) -> None:
    """Ronneberger, Fischer, Brox 2015: no padding, so that what is copied across is cropped in the middle."""
    x, down = net.input("data", *shape), []
    for level, count in enumerate((64, 128, 256, 512, 1024)):
        x = net.pool(f"pool{level}", x, 2, 2) if level else x
        x = net.conv_relu(f"conv_d{level}a-b", x, count, 3)
        x = net.conv_relu(f"conv_d{level}b-c", x, count, 3)
        x = net.dropout(x) if level > 2 else x
        down.append(x)
    for level, count, offset in ((3, 512, 4), (2, 256, 16), (1, 128, 40), (0, 64, 88)):
        x = net.conv_relu(f"upconv_{level}", x, count, 2, 2, kind="Deconvolution")
        x = net.concat(f"concat_{level}", x, net.crop(f"crop_{level}", down[level], x, offset))
        x = net.conv_relu(f"conv_u{level}a-b", x, count, 3)
        x = net.conv_relu(f"conv_u{level}b-c", x, count, 3)
    scores = net.conv("score", x, 2, 1, exact=True)
    net.softmax("visualize_out", scores, axis=1)
    label = net.input("label", shape[0], 1, shape[2] - 184, shape[3] - 184, phase="TRAIN")
    net.softmax_loss("loss", scores, label, axis=1, ignore=2)


def segnet(net: Prototxt, shape: Shape) -> None:
    """Badrinarayanan, Kendall, Cipolla 2015, as the authors' segnet: each value goes back to where pooling found it.

    In TEST the fork's BN only scales, its statistics being folded into it; in TRAIN it normalises by the batch.
    """

    def conv(name: str, x: str, count: int) -> str:
        x = net.conv(name, x, count, 3, pad=1)
        fillers = {"scale_filler": AROUND_ONE, "shift_filler": AROUND_ZERO}
        net.layer("BN", f"{name}_bn", x, x, "TEST", bn_param=fillers | {"bn_mode": "INFERENCE"})
        net.layer("BN", f"{name}_bn", x, x, "TRAIN", bn_param=fillers)
        return net.relu(x)

    x, size, found = net.input("data", *shape), shape[2:], []
    for number, (count, depth) in enumerate(VGG_STAGES, 1):
        for k in range(1, depth + 1):
            x = conv(f"conv{number}_{k}", x, count)
        x, mask = net.pool(f"pool{number}", x, 2, 2, tops=[f"pool{number}", f"pool{number}_mask"])
        found.append((mask, size))
        size = tuple(-(-n // 2) for n in size)
    for number in range(5, 0, -1):
        mask, (height, width) = found[number - 1]
        size = {"scale": 2, "upsample_w": width, "upsample_h": height}
        x = net.layer("Upsample", f"upsample{number}", [x, mask], f"pool{number}_D", upsample_param=size)
        count, depth = VGG_STAGES[number - 1]
        for k in range(depth, 1, -1):
            x = conv(f"conv{number}_{k}_D", x, count)
        if number > 1:
            x = conv(f"conv{number}_1_D", x, VGG_STAGES[number - 2][0])
    x = net.conv("conv1_1_D", x, 11, 3, pad=1, exact=True)
    net.softmax("prob", x)
    net.softmax_loss("loss", x, net.input("label", shape[0], 1, *shape[2:], phase="TRAIN"), ignore=11)


def pspnet50(net: Prototxt, shape: Shape) -> None:
    """Zhao et al. 2016, as the authors' pspnet50: ResNet-50 that keeps its resolution by dilation, a pyramid of means.

    The sides of the image are 8 n + 1; those of the features, n + 1, are divided by 6.
    """
    filler = {"slope_filler": AROUND_ONE, "bias_filler": AROUND_ZERO}

    def conv(name: str, x: str, count: int, kernel: int, stride: int = 1, dilation: int = 1) -> str:
        more = {"dilation": dilation} if dilation > 1 else {}
        x = net.conv(name, x, count, kernel, stride, kernel // 2 * dilation, bias=False, **more)
        return net.layer("BN", f"{name}/bn", x, x, bn_param=filler | {"momentum": 0.95, "eps": 1e-5})

    x = net.input("data", *shape)
    for k, count in enumerate((64, 64, 128), 1):
        x = net.relu(conv(f"conv1_{k}_3x3", x, count, 3, 2 if k == 1 else 1))
    x = net.pool("pool1", x, 3, 2, 1)
    stages = ((64, 3, 1, 1), (128, 4, 2, 1), (256, 6, 1, 2), (512, 3, 1, 4))
    for stage, (count, depth, stride, dilation) in enumerate(stages, 2):
        for k in range(1, depth + 1):
            name, step = f"conv{stage}_{k}", stride if k == 1 else 1
            shortcut = conv(f"{name}_1x1_proj", x, 4 * count, 1, step) if k == 1 else x
            y = net.relu(conv(f"{name}_1x1_reduce", x, count, 1, step))
            y = net.relu(conv(f"{name}_3x3", y, count, 3, dilation=dilation))
            x = net.relu(net.add(name, shortcut, conv(f"{name}_1x1_increase", y, 4 * count, 1)))
    height, width = ((n - 1) // 8 + 1 for n in shape[2:])
    pyramid = [x]
    for parts in (1, 2, 3, 6):
        size = (height // parts, width // parts)
        y = net.pool(f"conv5_3_pool{parts}", x, size, size, how="AVE")
        y = net.relu(conv(f"conv5_3_pool{parts}_conv", y, 512, 1))
        sizes = {"height": height, "width": width}
        pyramid.insert(1, net.layer("Interp", f"conv5_3_pool{parts}_interp", y, interp_param=sizes))
    x = net.dropout(net.relu(conv("conv5_4", net.concat("conv5_3_concat", *pyramid), 512, 3)), 0.1)
    x = net.conv("conv6", x, 150, 1, exact=True)
    x = net.layer("Interp", "conv6_interp", x, interp_param={"zoom_factor": 8})
    net.softmax("prob", x)
    net.softmax_loss("loss", x, net.input("label", shape[0], 1, *shape[2:], phase="TRAIN"), ignore=255)


def flownet_s(net: Prototxt, shape: Shape) -> None:
    """Fischer et al. 2015: two images, one above the other, into one net; the flow is refined from scale to scale.

    What is enlarged is cropped, so that no side need be a multiple of 64. A loss at each scale, Euclidean for
    the fork's L1Loss.
    """
    truth = net.input("flow_gt", shape[0], 2, *shape[2:], phase="TRAIN")

    def scaled(name: str, x: str, factor: float, phase: str | None = None) -> str:
        return net.layer("Eltwise", name, x, phase=phase, eltwise_param={"operation": "SUM", "coeff": factor})

    def predict(level: int, x: str) -> str:
        flow = net.conv(f"predict_flow{level}", x, 2, 3, pad=1, exact=True)
        like = net.layer("Resample", f"flow_gt{level}", [truth, flow], phase="TRAIN")
        net.layer("EuclideanLoss", f"flow_loss{level}", [flow, like], phase="TRAIN", loss_weight=0.32 / 2**level)
        return flow

    images = [scaled(f"{name}s", net.input(name, *shape), 1 / 255) for name in ("img0", "img1")]
    x, before = net.concat("input", *images), {}
    for name, count, kernel, stride in (
        ("1", 64, 7, 2),
        ("2", 128, 5, 2),
        ("3", 256, 5, 2),
        ("3_1", 256, 3, 1),
        ("4", 512, 3, 2),
        ("4_1", 512, 3, 1),
        ("5", 512, 3, 2),
        ("5_1", 512, 3, 1),
        ("6", 1024, 3, 2),
        ("6_1", 1024, 3, 1),
    ):
        x = before[name[0]] = net.relu(net.conv(f"conv{name}", x, count, kernel, stride, kernel // 2), 0.1)

    for level, count in ((5, 512), (4, 256), (3, 128), (2, 64)):
        like, up = before[str(level)], {"kind": "Deconvolution", "exact": True}
        flow = predict(level + 1, x)
        deconv = net.relu(net.conv(f"deconv{level}", x, count, 4, 2, kind="Deconvolution"), 0.1)
        flow = net.conv(f"upsample_flow{level + 1}to{level}", flow, 2, 4, 2, **up)
        x = net.concat(
            f"concat{level}",
            like,
            net.crop(f"crop_deconv{level}", deconv, like, 1),
            net.crop(f"crop_flow{level}", flow, like, 1),
        )
    flow = scaled("predict_flow2_scaled", predict(2, x), 20.0, "TEST")
    size = {"height": shape[2], "width": shape[3], "type": "LINEAR", "antialias": True}
    net.layer("Resample", "predict_flow_final", flow, phase="TEST", resample_param=size)
