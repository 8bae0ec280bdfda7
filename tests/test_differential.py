"""benchmarks/differential: what it found stays mended, and its parts work, without Caffe."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks" / "differential"))

import corpus
from case import Case, Values, input_layer
from generate import Nets
from judge import judge
from plants import planted
from shrink import shrink
from sides import Ours, Outcome, build, load, parameters

from caffe_port.formats import prototxt

FOUND = sorted((Path(__file__).with_name("corpus") / "differential").glob("*.json"))


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_what_differed_from_caffe_stays_mended(path: Path) -> None:
    _, case, caffe = corpus.read(path)
    assert judge(case, caffe, Ours()).word == ("agree" if caffe.ran else "both refuse")


# -- with a reference that is caffe-port itself --------------------------------------------------------------------


FIELDS = {
    "LayerParameter": "pooling_param relu_param inner_product_param softmax_param loss_param batch_norm_param "
    "slice_param scale_param",
    "PoolingParameter": "pool kernel_size kernel_h kernel_w stride stride_h stride_w pad pad_h pad_w global_pooling",
    "ReLUParameter": "negative_slope",
    "InnerProductParameter": "num_output bias_term axis transpose",
    "SoftmaxParameter": "axis",
    "LossParameter": "ignore_label normalization normalize",
    "BatchNormParameter": "use_global_stats eps",
    "SliceParameter": "axis slice_dim slice_point",
    "ScaleParameter": "axis num_axes bias_term",
}
"""What the Caffe that is played here knows."""

TYPES = ("Pooling", "ReLU", "InnerProduct", "SoftmaxWithLoss", "BatchNorm", "Slice", "Scale")

MODES = ["FULL", "VALID", "BATCH_SIZE", "NONE"]
NETS = Nets(
    {
        "types": TYPES,
        "messages": {
            message: {name: {"normalization": MODES, "pool": ["MAX", "AVE"]}.get(name) for name in names.split()}
            for message, names in FIELDS.items()
        },
    }
)


def reference(case: Case) -> Outcome:
    """caffe-port's own outcome, as if it were Caffe's."""
    rng = np.random.default_rng(case.seed)
    try:
        net = build(case)
    except Exception as error:  # noqa: BLE001
        return Outcome(refused=str(error), stage="make")
    arrays = {key: rng.standard_normal(value.shape).astype(np.float32) for key, value in parameters(net)}
    load(net, arrays)
    arrays = {key: value.numpy().copy() for key, value in parameters(net)}  # one for those that are shared
    losses = {slot for slot, _ in net.plan.losses}
    shapes = {slot: net.plan.shapes[producer] for slot, producer in enumerate(net.plan.shapes)}
    for blob, slot in net.plan.outputs:
        if slot not in losses:
            arrays[f"topdiff:{blob}"] = rng.standard_normal(shapes[slot]).astype(np.float32)
    outcome = Ours().run(case, Outcome({**arrays, "loss": np.zeros((), np.float32)}))
    assert outcome.refused is None, outcome.refused
    made = {key: array for key, array in outcome.arrays.items() if not key.startswith("fused:")}
    return Outcome({**arrays, **made}, outputs=outcome.outputs)


def test_nets_come_from_the_seed_alone_and_agree_with_themselves() -> None:
    words = []
    for number in range(60):
        random.random()
        case = NETS.draw(3, number)
        assert case.dump() == NETS.draw(3, number).dump()
        assert Case.load(case.dump()).text == case.text
        outcome = reference(case)
        words.append(judge(case, outcome, Ours()).word)
    assert set(words) <= {"agree", "both refuse", "not finite"}
    assert words.count("agree") > 30


@pytest.mark.parametrize(
    ("plant", "word"),
    [
        ("pooling rounds down", ""),
        ("losses divide by all labels", "differs"),
        ("readers of an in-place blob get the old values", ""),
        ("the running variance is biased", "differs"),
        ("blobs of one name are not shared", "differs"),
    ],
)
def test_a_planted_fault_is_found_and_made_small(plant: str, word: str) -> None:
    for number in range(1000):
        case = NETS.draw(1, number)
        outcome = reference(case)
        with planted(plant):
            verdict = judge(case, outcome, Ours())
        if verdict.finding and 1 < len(case.computing) < 4:
            break
    assert verdict.finding
    assert word in verdict.word

    def shows(smaller: Case) -> bool:
        outcome = reference(smaller)
        with planted(plant):
            return judge(smaller, outcome, Ours()).key == verdict.key

    def shapes(of: Case) -> dict[tuple[str, int], tuple[int, ...]]:
        made = [key.split(":") for key in reference(of).arrays if key.startswith("top:")]
        return {(name, int(k)): reference(of).arrays[f"top:{name}:{k}"].shape for _, name, k in made}

    small = shrink(case, shows, shapes, seconds=60)
    assert shows(small)
    assert len(small.computing) <= min(2, len(case.computing))
    assert sum(map(np.prod, small.inputs.values())) <= sum(map(np.prod, case.inputs.values()))


def test_inputs_of_detection_mean_something() -> None:
    """Without such numbers Caffe refuses the net as it runs, or what it computes is undefined."""
    priors = Values("priors").draw((1, 2, 24), [1])[0].reshape(2, 6, 4)
    assert (priors[0, :, :2] < priors[0, :, 2:]).all()
    assert (priors[1] > 0).all()
    for kind, width, corners in (("objects", 8, 3), ("detections", 7, 3)):
        rows = np.concatenate([Values(kind, 3, 4).draw((1, 1, 9, width), [seed])[0, 0] for seed in range(9)])
        assert set(rows[:, 0]) == {-1, 0, 1, 2}
        assert set(rows[:, 1]) == {1, 2, 3}
        assert (rows[:, corners : corners + 2] < rows[:, corners + 2 : corners + 4]).all()
    assert Values("image sizes").draw((2, 3), [1]).tolist() == [[61, 83, 1]] * 2


def test_a_finding_is_stored_with_its_inputs(tmp_path: Path) -> None:
    text = 'layer { name: "l0" type: "InnerProduct" bottom: "x0" top: "y" inner_product_param { num_output: 3 } }'
    layer = prototxt.parse(text, "NetParameter").layer[0]
    case = Case((input_layer("x0", (2, 5)), layer), "TEST", {"x0": Values("ties")}, 7)
    outcome = reference(case)
    kind, again, stored = corpus.read(corpus.write(tmp_path, "a kind", case, outcome))
    assert kind == "a kind"
    assert again == case
    assert judge(again, stored, Ours()).word == "agree"
    stored.arrays["in:x0"] += 1
    verdict = judge(again, stored, Ours())
    assert verdict.key == ("differs", "top")
    assert verdict.at == "l0 (InnerProduct)"
