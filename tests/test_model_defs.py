"""model_defs/: every prototxt parses, has its size and fits the authors' weights; the registry tells the truth.

Nothing of caffe_port is imported: shapes and counts are worked out here a second time.
"Parameters" are the learnable ones: Convolution and InnerProduct weights and biases, Scale gamma and beta.
BatchNorm's three blobs (running statistics) are not counted.
"""

import hashlib
import math
import os
import re
from pathlib import Path

import pytest
from conftest import ROOT
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

MODEL_DEFS = ROOT / "model_defs"
DESCRIPTORS = ROOT / "caffe_port" / "formats" / "caffe.binpb"
SHARED = Path(os.environ.get("CAFFE_PORT_SHARED", ROOT.parent / "shared"))

SOLVERS = sorted(p.name for p in MODEL_DEFS.glob("*_solver.prototxt"))
NETS = sorted(p.name for p in MODEL_DEFS.glob("*.prototxt") if p.name not in SOLVERS)
REGISTRY = tomllib.loads((MODEL_DEFS / "registry.toml").read_text(encoding="utf-8"))

PARAMETERS = {
    "simplenet_cifar10.prototxt": 5_493_258,
    "simplenet_cifar100.prototxt": 5_516_388,
    "simplenet_slim_300k_cifar10.prototxt": 302_028,
    "simplenet_slim_310k_cifar10.prototxt": 311_594,
    "simplenet_slim_310k_mnist.prototxt": 301_452,
    "simplenet_slim_460k_cifar10.prototxt": 455_862,
    "simplenet_svhn.prototxt": 311_594,
}
# (prototxt, the authors' weights below SHARED)
AUTHORS_WEIGHTS = [
    ("simplenet_slim_310k_mnist.prototxt", "models/simplenet/mnist_9972/weights.caffemodel"),
    ("simplenet_slim_310k_cifar10.prototxt", "models/simplenet/svhn_9757/weights.caffemodel"),  # the same widths
    ("simplenet_svhn.prototxt", "models/simplenet/svhn_9757/weights.caffemodel"),
]
# (solver, the authors' solver below SHARED)
AUTHORS_SOLVERS = [
    ("simplenet_cifar10_solver.prototxt", "models/simplenet/cifar10_9532/solver.prototxt"),
    ("simplenet_slim_310k_mnist_solver.prototxt", "models/simplenet/mnist_9972/solver.prototxt"),
    ("simplenet_svhn_solver.prototxt", "models/simplenet/svhn_9757/solver.prototxt"),
]
# (prototxt, the authors' definition below SHARED)
AUTHORS_NETS = [
    ("simplenet_cifar10.prototxt", "models/simplenet/cifar10_9532/train_val.prototxt"),
    ("simplenet_cifar10.prototxt", "models/simplenet/cifar10_9475/train_val.prototxt"),
    ("simplenet_slim_310k_cifar10.prototxt", "models/simplenet/architectures/Slim_version_310KParams.prototxt"),
    ("simplenet_slim_310k_mnist.prototxt", "golden/nets/mnist_9972.prototxt"),
    ("simplenet_slim_460k_cifar10.prototxt", "models/simplenet/architectures/Slim_version_460KParams.prototxt"),
    ("simplenet_svhn.prototxt", "models/simplenet/svhn_9757/train_test.prototxt"),
]

INPUT_SHAPE = {"mnist": (1, 28, 28), "cifar": (3, 32, 32), "SVHN": (3, 32, 32)}  # by the Data layer's name
CLASSES = {"cifar10": 10, "cifar100": 100, "mnist": 10, "svhn": 10}

ENTRY_REQUIRED = {"dataset": str, "classes": int, "parameters": int, "reported": list, "preprocessing": dict}
ENTRY_OPTIONAL = {"model": str, "solver": str, "weights": dict, "verified": dict, "note": str}
REPORTED_REQUIRED = {"accuracy": float, "source": str, "by": str}
REPORTED_OPTIONAL = {"date": str, "mirror_test": bool, "note": str}
WEIGHTS_REQUIRED = {"file": str, "sha256": str, "size": int}
WEIGHTS_OPTIONAL = {"url": str}
PREPROCESSING_REQUIRED = {
    "channel_order": str,
    "mean": (float, list, str),
    "scale": float,
    "std": (float, list),
    "pad": int,
    "crop": int,
    "mirror_train": bool,
    "mirror_test": bool,
}
PREPROCESSING_OPTIONAL = {"pad_first": bool, "resize": list}


@pytest.fixture(scope="module")
def schema():
    """Message classes of Caffe's schema by name, from the package's descriptor set, in a pool of their own."""
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    package = files.file[-1].package

    def message_class(name):
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))

    return message_class


def parse(schema, name, path):
    return text_format.Parse(path.read_text(encoding="utf-8"), schema(name)())


def shared(path):
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"{path} is not below {SHARED} (set CAFFE_PORT_SHARED)")
    return found


def in_phase(layers, phase):
    """The layers of that phase ("TRAIN" or "TEST"); these nets use include rules with a phase only."""
    for layer in layers:
        phases = [
            rule.DESCRIPTOR.fields_by_name["phase"].enum_type.values_by_number[rule.phase].name
            for rule in layer.include
        ]
        if not phases or phase in phases:
            yield layer


def side(size, p, round_up):
    kernel, stride, pad = p
    return int((math.ceil if round_up else math.floor)((size + 2 * pad - kernel) / stride)) + 1


def blob_shapes(layers, input_shape):
    """{layer: [shape of each parameter blob]} and {top: shape}, by Caffe's rules, for this family's layer types."""
    shapes, blobs = {"data": input_shape, "label": ()}, {}
    for layer in layers:
        if layer.type in ("Data", "Input"):
            continue
        bottom = shapes[layer.bottom[0]]
        top = bottom
        if layer.type == "Convolution":
            p = layer.convolution_param
            kernel, stride, pad = p.kernel_size[0], (list(p.stride) or [1])[0], (list(p.pad) or [0])[0]
            assert p.group == 1
            assert p.bias_term
            blobs[layer.name] = [(p.num_output, bottom[0], kernel, kernel), (p.num_output,)]
            top = (p.num_output, *(side(s, (kernel, stride, pad), round_up=False) for s in bottom[1:]))
        elif layer.type == "Pooling":
            p = layer.pooling_param
            window = p.kernel_size[0], (list(p.stride) or [1])[0], (list(p.pad) or [0])[0]
            top = (bottom[0], *(side(s, window, round_up=True) for s in bottom[1:]))
        elif layer.type == "InnerProduct":
            p = layer.inner_product_param
            blobs[layer.name] = [(p.num_output, math.prod(bottom)), (p.num_output,)]
            top = (p.num_output,)
        elif layer.type == "BatchNorm":
            blobs[layer.name] = [bottom[:1], bottom[:1], (1,)]
        elif layer.type == "Scale":
            assert layer.scale_param.bias_term
            blobs[layer.name] = [bottom[:1], bottom[:1]]
        elif layer.type in ("Accuracy", "SoftmaxWithLoss"):
            top = ()
        else:
            assert layer.type in ("ReLU", "Dropout"), layer.type
        shapes[layer.top[0]] = top
    return blobs, shapes


def net_blobs(net):
    return blob_shapes(in_phase(net.layer, "TEST"), INPUT_SHAPE[net.layer[0].name])


def count(net):
    """Learnable parameters."""
    statistics = {layer.name for layer in net.layer if layer.type == "BatchNorm"}
    blobs, _ = net_blobs(net)
    return sum(math.prod(s) for name, own in blobs.items() if name not in statistics for s in own)


def math_of(net, phase):
    """What a net computes and learns, free of formatting, defaults, blob names and the layers around it.

    Per layer: name, type, the layer that feeds it, (lr_mult, decay_mult) of each blob, and its parameters.
    """
    made_by, rows = {"data": "data"}, []
    for layer in in_phase(net.layer, phase):
        if layer.type in ("Data", "Input", "Accuracy", "SoftmaxWithLoss"):
            continue
        blobs = {"Convolution": 2, "InnerProduct": 2, "Scale": 2}.get(layer.type, 0)
        rates = [(p.lr_mult, p.decay_mult) for p in layer.param][:blobs]
        rates += [(1.0, 1.0)] * (blobs - len(rates))
        if layer.type == "Convolution":
            p = layer.convolution_param
            own = (
                p.num_output,
                *p.kernel_size,
                *(p.stride or [1]),
                *(p.pad or [0]),
                p.group,
                p.bias_term,
                p.weight_filler.type,
                p.weight_filler.std if p.weight_filler.type == "gaussian" else None,
                p.bias_filler.type,
                p.bias_filler.value,
            )
        elif layer.type == "Pooling":
            p = layer.pooling_param
            own = (p.pool, p.kernel_size, p.stride, p.pad)
        elif layer.type == "InnerProduct":
            p = layer.inner_product_param
            own = (p.num_output, p.weight_filler.type, p.bias_filler.type, p.bias_filler.value)
        elif layer.type == "BatchNorm":
            own = (layer.batch_norm_param.moving_average_fraction, layer.batch_norm_param.eps)
        elif layer.type == "Dropout":
            own = (layer.dropout_param.dropout_ratio,)
        else:
            own = ()
        rows.append((layer.name, layer.type, made_by[layer.bottom[0]], rates, own))
        made_by[layer.top[0]] = layer.name
    return rows


def check_fields(where, table, required, optional):
    missing, unknown = required.keys() - table.keys(), table.keys() - required.keys() - optional.keys()
    assert not missing, f"{where}: missing {sorted(missing)}"
    assert not unknown, f"{where}: unknown {sorted(unknown)}"
    for key, value in table.items():
        kind = (required | optional)[key]
        assert isinstance(value, kind), f"{where}: {key} is {type(value).__name__}"
        assert isinstance(value, bool) == (kind is bool), f"{where}: {key} is {type(value).__name__}"


# ----------------------------------------------------------------------------------------------------------- the nets


def test_every_net_is_listed_here_and_has_a_solver():
    assert sorted(PARAMETERS) == NETS
    assert {name.replace(".prototxt", "_solver.prototxt") for name in NETS} <= set(SOLVERS)


@pytest.mark.parametrize("name", NETS)
def test_parameter_count(schema, name):
    assert count(parse(schema, "NetParameter", MODEL_DEFS / name)) == PARAMETERS[name]


def test_cifar_nets_have_the_reported_size(schema):
    ten = count(parse(schema, "NetParameter", MODEL_DEFS / "simplenet_cifar10.prototxt"))
    hundred = count(parse(schema, "NetParameter", MODEL_DEFS / "simplenet_cifar100.prototxt"))
    assert ten == pytest.approx(5.48e6, rel=0.005)
    assert hundred - ten == 90 * (256 + 1)  # the reported 5.48 M is that of 10 classes


def test_the_reported_size_counts_the_weights_alone(schema):
    net = parse(schema, "NetParameter", MODEL_DEFS / "simplenet_cifar10.prototxt")
    weights = sum(math.prod(own[0]) for own in net_blobs(net)[0].values() if len(own[0]) > 1)
    assert weights == 5_484_736


@pytest.mark.parametrize("name", NETS)
def test_both_phases_share_one_definition(schema, name):
    net = parse(schema, "NetParameter", MODEL_DEFS / name)
    assert net.name == name.removesuffix(".prototxt")
    train, test = (list(in_phase(net.layer, phase)) for phase in ("TRAIN", "TEST"))
    assert [layer.name for layer in test if layer.name != "accuracy"] == [layer.name for layer in train]
    assert [layer.type for layer in train].count("Data") == [layer.type for layer in test].count("Data") == 1
    assert [layer.type for layer in test].count("Accuracy") == 1
    assert train[-1].type == test[-1].type == "SoftmaxWithLoss"
    for layer in net.layer:
        # Without it Caffe uses batch statistics in TRAIN and the stored ones in TEST (batch_norm_layer.cpp).
        assert not layer.batch_norm_param.HasField("use_global_stats"), layer.name
    for phase in (train, test):
        names = [layer.name for layer in phase]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("name", NETS)
def test_the_classifier_sees_one_pixel_and_every_class(schema, name):
    net = parse(schema, "NetParameter", MODEL_DEFS / name)
    _, shapes = net_blobs(net)
    assert shapes["poolcp6"][1:] == (1, 1)
    assert shapes["ip1"] == (100 if "cifar100" in name else 10,)


@pytest.mark.parametrize("name", [n for n in NETS if "cifar" in n])
def test_cifar_data_is_cropped_and_mirrored_in_both_phases(schema, name):
    net = parse(schema, "NetParameter", MODEL_DEFS / name)
    for data in net.layer[:2]:
        assert (data.transform_param.crop_size, data.transform_param.mirror) == (32, True)


@pytest.mark.parametrize(("name", "authors"), AUTHORS_NETS)
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_same_net_as_the_authors(schema, name, authors, phase):
    ours = parse(schema, "NetParameter", MODEL_DEFS / name)
    theirs = parse(schema, "NetParameter", shared(authors))
    assert math_of(ours, phase) == math_of(theirs, phase)


@pytest.mark.parametrize(("name", "weights"), AUTHORS_WEIGHTS)
def test_the_authors_weights_fit(schema, name, weights):
    stored = schema("NetParameter").FromString(shared(weights).read_bytes())
    theirs = {layer.name: [tuple(b.shape.dim) for b in layer.blobs] for layer in stored.layer if layer.blobs}
    assert net_blobs(parse(schema, "NetParameter", MODEL_DEFS / name))[0] == theirs


# -------------------------------------------------------------------------------------------------------- the solvers


@pytest.mark.parametrize("name", SOLVERS)
def test_solver(schema, name):
    solver = parse(schema, "SolverParameter", MODEL_DEFS / name)
    assert solver.net in NETS
    assert solver.net.removesuffix(".prototxt") in name
    assert solver.snapshot_prefix == name.removesuffix("_solver.prototxt")
    assert solver.type in ("AdaDelta", "Nesterov")
    assert solver.lr_policy == "multistep"
    assert len(set(solver.stepvalue)) == len(solver.stepvalue)
    assert max(solver.stepvalue) < solver.max_iter
    assert "# net is relative to this file's folder." in (MODEL_DEFS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SOLVERS)
def test_one_test_covers_the_test_set(schema, name):
    solver = parse(schema, "SolverParameter", MODEL_DEFS / name)
    data = parse(schema, "NetParameter", MODEL_DEFS / solver.net).layer[1]
    images = 26_032 if data.name == "SVHN" else 10_000
    assert solver.test_iter[0] * data.data_param.batch_size == images


@pytest.mark.parametrize("name", ["simplenet_cifar10_port_solver.prototxt", "simplenet_cifar100_solver.prototxt"])
def test_the_ports_recipe(schema, name):
    solver = parse(schema, "SolverParameter", MODEL_DEFS / name)
    data = parse(schema, "NetParameter", MODEL_DEFS / solver.net).layer[0]
    epoch = 50_000 // data.data_param.batch_size
    assert data.data_param.batch_size == 100
    assert [step / epoch for step in solver.stepvalue] == [100, 190, 306, 390, 440]
    assert solver.max_iter / epoch == 540
    rates = (solver.base_lr, solver.momentum, solver.delta, solver.weight_decay, solver.gamma)
    assert rates == pytest.approx((0.1, 0.9, 1e-3, 1e-3, 0.1))


@pytest.mark.parametrize(("name", "authors"), AUTHORS_SOLVERS)
def test_same_solver_as_the_authors(schema, name, authors):
    ours = parse(schema, "SolverParameter", MODEL_DEFS / name)
    theirs = parse(schema, "SolverParameter", shared(authors))
    for solver in (ours, theirs):  # where things lie, and on which GPU, is nobody's hyper-parameter
        for field in ("net", "snapshot_prefix", "device_id", "train_state"):
            solver.ClearField(field)
    assert ours == theirs


# ------------------------------------------------------------------------------------------------------- the registry


@pytest.mark.parametrize("entry", REGISTRY)
def test_entry_is_well_formed(entry):
    table = REGISTRY[entry]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry)
    check_fields(entry, table, ENTRY_REQUIRED, ENTRY_OPTIONAL)
    assert table["classes"] == CLASSES[table["dataset"]]
    assert "model" in table or "weights" in table
    for key in ("model", "solver"):
        assert key not in table or (MODEL_DEFS / table[key]).is_file()

    for figure in table["reported"]:
        check_fields(f"{entry}.reported", figure, REPORTED_REQUIRED, REPORTED_OPTIONAL)
        assert 0 < figure["accuracy"] < 100
        assert re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", figure.get("date", "2016-08"))

    p = table["preprocessing"]
    check_fields(f"{entry}.preprocessing", p, PREPROCESSING_REQUIRED, PREPROCESSING_OPTIONAL)
    channels = 1 if table["dataset"] == "mnist" else 3
    assert p["channel_order"] in (("GRAY",) if channels == 1 else ("RGB", "BGR"))
    for key in ("mean", "std"):
        assert not isinstance(p[key], list) or len(p[key]) == channels
    assert not isinstance(p["mean"], str) or p["mean"] == "training-set mean image"
    assert p["pad"] >= 0
    assert p["crop"] >= 0

    if "weights" in table:
        weights = table["weights"]
        check_fields(f"{entry}.weights", weights, WEIGHTS_REQUIRED, WEIGHTS_OPTIONAL)
        assert re.fullmatch(r"[0-9a-f]{64}", weights["sha256"])
        assert not Path(weights["file"]).is_absolute()
        assert weights.get("url", "https://").startswith("https://")


@pytest.mark.parametrize("entry", [e for e in REGISTRY if "model" in REGISTRY[e]])
def test_entry_agrees_with_its_model(schema, entry):
    table = REGISTRY[entry]
    net = parse(schema, "NetParameter", MODEL_DEFS / table["model"])
    assert count(net) == table["parameters"]
    assert net_blobs(net)[1]["ip1"] == (table["classes"],)
    if "solver" in table:  # the fast recipe has none
        assert parse(schema, "SolverParameter", MODEL_DEFS / table["solver"]).net == table["model"]


def test_every_net_and_solver_is_in_the_registry():
    assert {table["model"] for table in REGISTRY.values() if "model" in table} == set(NETS)
    assert {table["solver"] for table in REGISTRY.values() if "solver" in table} == set(SOLVERS)


@pytest.mark.parametrize("entry", [e for e in REGISTRY if "weights" in REGISTRY[e]])
def test_weights_are_the_registered_ones(schema, entry):
    weights = REGISTRY[entry]["weights"]
    own = MODEL_DEFS / weights["file"]
    content = (own if own.is_file() else shared(weights["file"])).read_bytes()
    assert len(content) == weights["size"]
    assert hashlib.sha256(content).hexdigest() == weights["sha256"]
    net = schema("NetParameter").FromString(content)
    statistics = {layer.name for layer in net.layer if layer.type == "BatchNorm"}
    held = sum(
        len(blob.data) for layer in [*net.layer, *net.layers] if layer.name not in statistics for blob in layer.blobs
    )
    assert held == REGISTRY[entry]["parameters"]
