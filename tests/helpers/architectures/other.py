"""Nets that describe, compare or compress."""

from __future__ import annotations

from architectures.builder import AROUND_ZERO, Prototxt
from architectures.classification import Shape

STEPS = 7
WORDS = 8801


def captioner(net: Prototxt, shape: Shape) -> None:
    """Donahue et al. 2014, LRCN: CaffeNet sees the image, the second of two LSTMs is told of it at every word."""
    batch = shape[0]
    x = net.conv_relu("conv1", net.input("data", *shape), 96, 11, 4)
    x = net.lrn("norm1", net.pool("pool1", x, 3, 2))
    x = net.conv_relu("conv2", x, 256, 5, pad=2, group=2)
    x = net.lrn("norm2", net.pool("pool2", x, 3, 2))
    x = net.conv_relu("conv3", x, 384, 3, pad=1)
    x = net.conv_relu("conv4", x, 384, 3, pad=1, group=2)
    x = net.conv_relu("conv5", x, 256, 3, pad=1, group=2)
    x = net.pool("pool5", x, 3, 2)
    for name in ("fc6", "fc7"):
        x = net.dropout(net.relu(net.fc(name, x, 4096)))
    image = net.reshape("image_features", net.fc("fc8", x, 1000), batch, -1)

    near_zero = {"type": "uniform", "min": -0.08, "max": 0.08}
    cont, words = (net.input(name, STEPS, batch) for name in ("cont_sentence", "input_sentence"))
    embed = {"input_dim": net.channels(WORDS - 1) + 1, "num_output": net.channels(1000), "bias_term": False}
    x = net.layer("Embed", "embedding", words, "embedded", embed_param=embed | {"weight_filler": near_zero})
    x = net.dropout(x)
    state = {"num_output": net.channels(1000), "weight_filler": near_zero, "bias_filler": AROUND_ZERO}
    x = net.layer("LSTM", "lstm1", [x, cont], recurrent_param=state)
    x = net.dropout(net.layer("LSTM", "lstm2", [x, cont, image], recurrent_param=state))
    x = net.fc("predict", x, net.channels(WORDS - 1) + 1, exact=True, axis=2, weight_filler=near_zero)
    net.softmax("probs", x, axis=2)
    target = net.input("target_sentence", STEPS, batch, phase="TRAIN")
    net.softmax_loss("cross_entropy_loss", x, target, 20, axis=2, ignore=-1)
    net.layer("Accuracy", "accuracy", [x, target], phase="TRAIN", accuracy_param={"axis": 2, "ignore_label": -1})


def siamese(net: Prototxt, shape: Shape) -> None:
    """Caffe's mnist_siamese, after Hadsell, Chopra, LeCun 2006: two LeNets that share every parameter by name."""
    pair = net.input("pair_data", shape[0], 2, *shape[2:])
    halves = net.layer("Slice", "slice_pair", pair, ["data", "data_p"], slice_param={"slice_dim": 1, "slice_point": 1})
    features = []
    for x, end in zip(halves, ("", "_p"), strict=True):
        shared = {name: [{"name": f"{name}_{blob}"} for blob in "wb"] for name in ("conv1", "conv2", "ip1", "ip2")}
        shared["feat"] = [{"name": "feat_w", "lr_mult": 1}, {"name": "feat_b", "lr_mult": 2}]
        x = net.pool(f"pool1{end}", net.conv(f"conv1{end}", x, 20, 5, param=shared["conv1"]), 2, 2)
        x = net.pool(f"pool2{end}", net.conv(f"conv2{end}", x, 50, 5, param=shared["conv2"]), 2, 2)
        x = net.relu(net.fc(f"ip1{end}", x, 500, param=shared["ip1"]))
        x = net.fc(f"ip2{end}", x, 10, exact=True, param=shared["ip2"])
        features.append(net.fc(f"feat{end}", x, 2, exact=True, param=shared["feat"]))
    label = net.input("sim", shape[0], phase="TRAIN")
    net.layer("ContrastiveLoss", "loss", [*features, label], phase="TRAIN", contrastive_loss_param={"margin": 1.0})


def autoencoder(net: Prototxt, shape: Shape) -> None:
    """Hinton, Salakhutdinov 2006, as Caffe's mnist_autoencoder: the image through thirty numbers, and two losses."""
    flat = x = net.layer("Flatten", "flatdata", net.input("data", *shape))
    sparse = {"type": "gaussian", "std": 1.0, "sparse": 15}
    sizes = (("encode", (1000, 500, 250)), ("encode", (30,)), ("decode", (250, 500, 1000)))
    number = {"encode": 1, "decode": 4}
    for what, counts in sizes:
        for count in counts:
            x = net.fc(f"{what}{number[what]}", x, count, exact=count == 30, weight_filler=sparse)
            number[what] += 1 if what == "encode" else -1
            if count != 30:
                x = net.layer("Sigmoid", f"{x}neuron", x)
    x = net.fc("decode1", x, shape[1] * shape[2] * shape[3], exact=True, weight_filler=sparse)
    net.layer("SigmoidCrossEntropyLoss", "loss", [x, flat], "cross_entropy_loss", loss_weight=1)
    x = net.layer("Sigmoid", "decode1neuron", x)
    net.layer("EuclideanLoss", "loss2", [x, flat], "l2_error", loss_weight=0)
