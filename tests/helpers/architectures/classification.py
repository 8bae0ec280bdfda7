"""Nets that say what is in an image."""

from __future__ import annotations

from architectures.builder import Prototxt

Shape = tuple[int, ...]


def alexnet(net: Prototxt, shape: Shape) -> None:
    """Krizhevsky, Sutskever, Hinton 2012, as Caffe's bvlc_alexnet: two groups, normalisation before pooling."""
    x = net.relu(net.conv("conv1", net.input("data", *shape), 96, 11, 4))
    x = net.pool("pool1", net.lrn("norm1", x), 3, 2)
    x = net.conv_relu("conv2", x, 256, 5, pad=2, group=2)
    x = net.pool("pool2", net.lrn("norm2", x), 3, 2)
    x = net.conv_relu("conv3", x, 384, 3, pad=1)
    x = net.conv_relu("conv4", x, 384, 3, pad=1, group=2)
    x = net.conv_relu("conv5", x, 256, 3, pad=1, group=2)
    x = net.pool("pool5", x, 3, 2)
    for name in ("fc6", "fc7"):
        x = net.dropout(net.relu(net.fc(name, x, 4096)))
    net.classified(net.fc("fc8", x, 1000), shape[0])


VGG_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def vgg_stage(net: Prototxt, x: str, number: int, pad: int = 1) -> str:
    """The convolutions of one of VGG-16's stages; ``pad`` is the first one's."""
    count, depth = VGG_STAGES[number - 1]
    for k in range(1, depth + 1):
        x = net.conv_relu(f"conv{number}_{k}", x, count, 3, pad=pad if k == 1 else 1)
    return x


def vgg16(net: Prototxt, shape: Shape) -> None:
    """Simonyan, Zisserman 2014, configuration D."""
    x = net.input("data", *shape)
    for number in range(1, 6):
        x = net.pool(f"pool{number}", vgg_stage(net, x, number), 2, 2)
    for name in ("fc6", "fc7"):
        x = net.dropout(net.relu(net.fc(name, x, 4096)))
    net.classified(net.fc("fc8", x, 1000), shape[0])


def googlenet(net: Prototxt, shape: Shape) -> None:
    """Szegedy et al. 2014, as Caffe's bvlc_googlenet, with the auxiliary classifiers in TRAIN."""
    label = net.input("label", shape[0], phase="TRAIN")
    x = net.conv_relu("conv1/7x7_s2", net.input("data", *shape), 64, 7, 2, 3)
    x = net.lrn("pool1/norm1", net.pool("pool1/3x3_s2", x, 3, 2))
    x = net.conv_relu("conv2/3x3_reduce", x, 64, 1)
    x = net.lrn("conv2/norm2", net.conv_relu("conv2/3x3", x, 192, 3, pad=1))
    x = net.pool("pool2/3x3_s2", x, 3, 2)
    for name, *counts in (
        ("3a", 64, 96, 128, 16, 32, 32),
        ("3b", 128, 128, 192, 32, 96, 64),
        ("4a", 192, 96, 208, 16, 48, 64),
        ("4b", 160, 112, 224, 24, 64, 64),
        ("4c", 128, 128, 256, 24, 64, 64),
        ("4d", 112, 144, 288, 32, 64, 64),
        ("4e", 256, 160, 320, 32, 128, 128),
        ("5a", 256, 160, 320, 32, 128, 128),
        ("5b", 384, 192, 384, 48, 128, 128),
    ):
        x = _inception(net, f"inception_{name}", x, *counts)
        if name in ("3b", "4e"):
            x = net.pool(f"pool{name[0]}/3x3_s2", x, 3, 2)
        if name in ("4a", "4d"):
            _googlenet_auxiliary(net, "loss1" if name == "4a" else "loss2", x, label)
    x = net.dropout(net.pool("pool5/7x7_s1", x, 7, 1, how="AVE"), 0.4)
    scores = net.fc("loss3/classifier", x, 1000)
    net.softmax("prob", scores)
    net.softmax_loss("loss3/loss3", scores, label, 1)


def _inception(net: Prototxt, name: str, x: str, *counts: int) -> str:
    one, reduce3, three, reduce5, five, projection = counts
    reduced3 = net.conv_relu(f"{name}/3x3_reduce", x, reduce3, 1)
    reduced5 = net.conv_relu(f"{name}/5x5_reduce", x, reduce5, 1)
    return net.concat(
        f"{name}/output",
        net.conv_relu(f"{name}/1x1", x, one, 1),
        net.conv_relu(f"{name}/3x3", reduced3, three, 3, pad=1),
        net.conv_relu(f"{name}/5x5", reduced5, five, 5, pad=2),
        net.conv_relu(f"{name}/pool_proj", net.pool(f"{name}/pool", x, 3, 1, 1), projection, 1),
    )


def _googlenet_auxiliary(net: Prototxt, name: str, x: str, label: str) -> None:
    net.only("TRAIN")
    x = net.pool(f"{name}/ave_pool", x, 5, 3, how="AVE")
    x = net.conv_relu(f"{name}/conv", x, 128, 1)
    x = net.dropout(net.relu(net.fc(f"{name}/fc", x, 1024)), 0.7)
    net.softmax_loss(f"{name}/loss", net.fc(f"{name}/classifier", x, 1000), label, 0.3)
    net.only(None)


def inception_v3(net: Prototxt, shape: Shape) -> None:
    """Szegedy et al. 2015, with the auxiliary classifier in TRAIN."""
    label = net.input("label", shape[0], phase="TRAIN")

    def conv(name: str, x: str, count: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = True) -> str:
        pad = tuple(k // 2 for k in kernel) if isinstance(kernel, tuple) else kernel // 2
        return net.conv_bn_relu(name, x, count, kernel, stride, pad if same else 0, eps=0.001)

    def chain(name: str, x: str, *steps: tuple[int, int | tuple[int, int]], last_stride: int = 1) -> str:
        """Convolutions one after the other, by count and kernel; one of stride 2 is not padded."""
        for k, (count, kernel) in enumerate(steps, 1):
            stride = last_stride if k == len(steps) else 1
            x = conv(f"{name}_{k}", x, count, kernel, stride, same=stride == 1)
        return x

    def average(name: str, x: str, count: int) -> str:
        return conv(f"{name}/pool_proj", net.pool(f"{name}/pool", x, 3, 1, 1, how="AVE"), count, 1)

    x = conv("conv1", net.input("data", *shape), 32, 3, 2, same=False)
    x = conv("conv2", x, 32, 3, same=False)
    x = net.pool("pool1", conv("conv3", x, 64, 3), 3, 2)
    x = conv("conv4", x, 80, 1)
    x = net.pool("pool2", conv("conv5", x, 192, 3, same=False), 3, 2)
    for name, projection in (("a1", 32), ("a2", 64), ("a3", 64)):
        x = net.concat(
            f"{name}/concat",
            conv(f"{name}/1x1", x, 64, 1),
            chain(f"{name}/5x5", x, (48, 1), (64, 5)),
            chain(f"{name}/double", x, (64, 1), (96, 3), (96, 3)),
            average(name, x, projection),
        )
    x = net.concat(
        "b/concat",
        conv("b/3x3", x, 384, 3, 2, same=False),
        chain("b/double", x, (64, 1), (96, 3), (96, 3), last_stride=2),
        net.pool("b/pool", x, 3, 2),
    )
    for name, n in (("c1", 128), ("c2", 160), ("c3", 160), ("c4", 192)):
        x = net.concat(
            f"{name}/concat",
            conv(f"{name}/1x1", x, 192, 1),
            chain(f"{name}/7x7", x, (n, 1), (n, (1, 7)), (192, (7, 1))),
            chain(f"{name}/double", x, (n, 1), (n, (7, 1)), (n, (1, 7)), (n, (7, 1)), (192, (1, 7))),
            average(name, x, 192),
        )
    net.only("TRAIN")
    side = net.pool("aux/pool1", x, 5, 3, how="AVE")
    side = conv("aux/conv2", conv("aux/conv1", side, 128, 1), 768, 5, same=False)
    side = net.fc("aux/classifier", net.pool("aux/pool2", side, how="AVE"), 1000)
    net.softmax_loss("aux/loss", side, label, 0.4)
    net.only(None)
    x = net.concat(
        "d/concat",
        chain("d/3x3", x, (192, 1), (320, 3), last_stride=2),
        chain("d/7x7", x, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), last_stride=2),
        net.pool("d/pool", x, 3, 2),
    )
    for name in ("e1", "e2"):
        middle = conv(f"{name}/3x3_reduce", x, 384, 1)
        double = chain(f"{name}/double", x, (448, 1), (384, 3))
        x = net.concat(
            f"{name}/concat",
            conv(f"{name}/1x1", x, 320, 1),
            *(conv(f"{name}/3x3_{k}", middle, 384, kernel) for k, kernel in enumerate(((1, 3), (3, 1)))),
            *(conv(f"{name}/double_3{k}", double, 384, kernel) for k, kernel in enumerate(((1, 3), (3, 1)))),
            average(name, x, 192),
        )
    x = net.dropout(net.pool("pool3", x, how="AVE"))
    scores = net.fc("classifier", x, 1000)
    net.softmax("prob", scores)
    net.softmax_loss("loss", scores, label)


def resnet50(net: Prototxt, shape: Shape) -> None:
    """He et al. 2015, as the authors' ResNet-50-deploy: stride in the first 1x1, a bias in conv1 alone."""
    x = net.relu(net.bn(net.conv("conv1", net.input("data", *shape), 64, 7, 2, 3)))
    x = net.pool("pool1", x, 3, 2)
    for stage, (count, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 2):
        for k in range(depth):
            name, stride = f"res{stage}{'abcdef'[k]}", 2 if k == 0 and stage > 2 else 1
            shortcut = net.conv_bn(f"{name}_branch1", x, 4 * count, 1, stride) if k == 0 else x
            y = net.conv_bn_relu(f"{name}_branch2a", x, count, 1, stride)
            y = net.conv_bn_relu(f"{name}_branch2b", y, count, 3, pad=1)
            x = net.relu(net.add(name, shortcut, net.conv_bn(f"{name}_branch2c", y, 4 * count, 1)))
    x = net.pool("pool5", x, 7, 1, how="AVE")
    net.classified(net.fc("fc1000", x, 1000), shape[0])


def densenet121(net: Prototxt, shape: Shape) -> None:
    """Huang et al. 2016; growth 32, bottlenecks of 128, transitions that halve."""
    x = net.conv_bn_relu("conv1", net.input("data", *shape), 64, 7, 2, 3, eps=1e-5)
    x, count = net.pool("pool1", x, 3, 2, 1), 64

    def normed_conv(name: str, x: str, outputs: int, kernel: int) -> str:
        return net.conv(name, net.relu(net.bn(x, f"{name}/pre", 1e-5)), outputs, kernel, pad=kernel // 2, bias=False)

    for block, depth in enumerate((6, 12, 24, 16), 2):
        for k in range(1, depth + 1):
            y = normed_conv(f"conv{block}_{k}/x1", x, 128, 1)
            x = net.concat(f"concat_{block}_{k}", x, normed_conv(f"conv{block}_{k}/x2", y, 32, 3))
            count += 32
        if block < 5:
            count //= 2
            x = net.pool(f"pool{block}", normed_conv(f"conv{block}_blk", x, count, 1), 2, 2, how="AVE")
    x = net.pool("pool5", net.relu(net.bn(x, "conv5_blk", 1e-5)), how="AVE")
    net.classified(net.conv("fc6", x, 1000, 1), shape[0])


def mobilenet_v1(net: Prototxt, shape: Shape) -> None:
    """Howard et al. 2017: depthwise convolutions as groups of one channel each."""
    x, count = net.conv_bn_relu("conv1", net.input("data", *shape), 32, 3, 2, 1), 32
    for name, outputs, stride in (
        ("2_1", 64, 1),
        ("2_2", 128, 2),
        ("3_1", 128, 1),
        ("3_2", 256, 2),
        ("4_1", 256, 1),
        ("4_2", 512, 2),
        *((f"5_{k}", 512, 1) for k in range(1, 6)),
        ("5_6", 1024, 2),
        ("6", 1024, 1),
    ):
        x = net.relu(net.bn(net.depthwise(f"conv{name}/dw", x, count, stride)))
        x, count = net.conv_bn_relu(f"conv{name}/sep", x, outputs, 1), outputs
    x = net.pool("pool6", x, how="AVE")
    net.classified(net.conv("fc7", x, 1000, 1), shape[0])


def mobilenet_v2(net: Prototxt, shape: Shape) -> None:
    """Sandler et al. 2018: inverted residuals, ReLU6, linear bottlenecks."""
    x, count = net.relu(net.conv_bn("conv1", net.input("data", *shape), 32, 3, 2, 1), kind="ReLU6"), 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for stage, (factor, outputs, depth, stride) in enumerate(stages, 2):
        for k in range(1, depth + 1):
            name, y = f"conv{stage}_{k}", x
            if factor > 1:
                y = net.relu(net.conv_bn(f"{name}/expand", y, factor * count, 1), kind="ReLU6")
            y = net.bn(net.depthwise(f"{name}/dwise", y, factor * count, stride if k == 1 else 1))
            y = net.conv_bn(f"{name}/linear", net.relu(y, kind="ReLU6"), outputs, 1)
            x = net.add(f"block{stage}_{k}", x, y) if k > 1 else y
            count = outputs
    x = net.relu(net.conv_bn("conv9", x, 1280, 1), kind="ReLU6")
    net.classified(net.conv("fc10", net.pool("pool9", x, how="AVE"), 1000, 1), shape[0])


def shufflenet(net: Prototxt, shape: Shape) -> None:
    """Zhang et al. 2017, 1x with three groups; depthwise and shuffle as the Caffe forks call them."""
    x = net.pool("pool1", net.conv_bn_relu("conv1", net.input("data", *shape), 24, 3, 2, 1), 3, 2)
    inputs = 24
    for stage, (outputs, depth) in enumerate(((240, 4), (480, 8), (960, 4)), 2):
        for k in range(1, depth + 1):
            name, down = f"stage{stage}_{k}", k == 1
            y = net.conv_bn_relu(f"{name}/conv1", x, outputs // 4, 1, group=1 if inputs == 24 else 3)
            y = net.layer("ShuffleChannel", f"{name}/shuffle", y, shuffle_channel_param={"group": 3})
            y = net.bn(net.depthwise(f"{name}/conv2", y, outputs // 4, 2 if down else 1, "DepthwiseConvolution"))
            y = net.conv_bn(f"{name}/conv3", y, outputs - inputs if down else outputs, 1, group=3)
            if down:
                x = net.relu(net.concat(name, net.pool(f"{name}/shortcut", x, 3, 2, how="AVE"), y))
            else:
                x = net.relu(net.add(name, x, y))
            inputs = outputs
    net.classified(net.fc("fc1000", net.pool("pool_ave", x, how="AVE"), 1000), shape[0])


def squeezenet(net: Prototxt, shape: Shape) -> None:
    """Iandola et al. 2016, version 1.0."""
    x = net.pool("pool1", net.conv_relu("conv1", net.input("data", *shape), 96, 7, 2), 3, 2)
    for k, squeeze in enumerate((16, 16, 32, 32, 48, 48, 64, 64), 2):
        y = net.conv_relu(f"fire{k}/squeeze1x1", x, squeeze, 1)
        ones = net.conv_relu(f"fire{k}/expand1x1", y, 4 * squeeze, 1)
        x = net.concat(f"fire{k}/concat", ones, net.conv_relu(f"fire{k}/expand3x3", y, 4 * squeeze, 3, pad=1))
        if k in (4, 8):
            x = net.pool(f"pool{k}", x, 3, 2)
    x = net.conv_relu("conv10", net.dropout(x), 1000, 1)
    net.classified(net.pool("pool10", x, how="AVE"), shape[0])
