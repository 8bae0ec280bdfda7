"""The record of every type against what its class makes and holds."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings

import pytest
import registries
import signature_cases
import torch
from signature_cases import CASES, Case

from caffe_port.formats import prototxt
from caffe_port.formats.message import schema
from caffe_port.layers import REGISTRY, Layer, class_of
from caffe_port.layers.layer import PYTHON_LAYERS
from caffe_port.signatures.signature import (
    ANY,
    PYTHON,
    SIGNATURES,
    Holds,
    Signature,
    Trait,
    compares_labels,
    has,
    has_weights,
    holds,
    signature_of,
    types_with,
)

OWN = {name: cls for name, cls in REGISTRY.items() if cls.__module__.startswith("caffe_port.layers.")}


def plugins() -> set[str]:
    """Types that other test files define."""
    return {name for name, cls in REGISTRY.items() if not cls.__module__.startswith("caffe_port.")}


# -- one record a type --------------------------------------------------------------------------------------------


def test_every_class_has_its_record() -> None:
    assert set(OWN) == set(SIGNATURES) - plugins()
    for name, cls in OWN.items():
        assert cls.signature is SIGNATURES[name]
    assert {name: cls.signature for name, cls in PYTHON_LAYERS.items()} == PYTHON


@pytest.mark.parametrize("type_", sorted({cls.__name__ for cls in OWN.values()}))
def test_the_class_says_what_the_record_says(type_: str) -> None:
    cls, signature = REGISTRY[type_], SIGNATURES[type_]
    assert not {"param", "blobs", "aliases", "loss", "labels", "source", "per_bottom"} & _written(cls)
    assert (cls.blobs, cls.aliases) == (signature.blobs, signature.aliases)
    assert cls.loss == signature.has(Trait.LOSS)
    assert cls.labels == signature.has(Trait.LABELS)
    assert cls.source == signature.has(Trait.SOURCE)
    assert cls.per_bottom == signature.has(Trait.PER_BOTTOM)
    assert (signature.tops is None) == signature.has(Trait.SOURCE), "a rule for every type that is built"
    assert bool(signature.blobs) == (signature.blob_shapes is not None)
    assert signature.statistics | signature.optional <= set(signature.blobs)
    assert len(signature.holds) <= signature.bottoms[1]


def _written(cls: type[Layer]) -> set[str]:
    """The class attributes that stand in the source of a class."""
    import ast
    import inspect
    import textwrap

    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    plain = [target for one in node.body if isinstance(one, ast.Assign) for target in one.targets]
    return {name.id for target in plain for name in ast.walk(target) if isinstance(name, ast.Name)}


def test_messages_are_fields_of_the_schema() -> None:
    assert not {m for s in SIGNATURES.values() for m in s.messages if m not in schema("LayerParameter").fields}


def test_from_caffe_is_the_first_method() -> None:
    import ast
    import inspect
    import textwrap

    for cls in {cls for cls in OWN.values() if "from_caffe" in vars(cls)}:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(node, ast.ClassDef)
        first = next(one for one in node.body if isinstance(one, ast.FunctionDef))
        assert first.name == "from_caffe", cls.__name__


# -- the rules ----------------------------------------------------------------------------------------------------


def test_every_record_has_a_case() -> None:
    assert [type_ for type_ in signature_cases.records() if not signature_cases.cases_of(type_)] == []
    unbuilt = {"Python", *signature_cases.UNBUILT}
    sources = types_with(Trait.SOURCE)
    covered = {case.type for case in CASES}
    missing = set(SIGNATURES) - plugins() - covered - sources - unbuilt - set(SIGNATURES["ForkLoss"].aliases)
    assert missing == set(), "an alias is a type, too"


def test_no_case_hides_a_swapped_axis() -> None:
    """No two lengths of a picture are equal, and no batch is of one alone."""
    images = [shape for case in CASES for shape in case.bottoms if len(shape) == 4 and min(shape) > 1]
    assert all(len(set(shape)) == 4 or shape[0] == shape[1] for shape in images)
    assert all(shape[2] != shape[3] for shape in images)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tops_are_what_forward_makes(case: Case) -> None:
    signature_cases.check_tops(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_binary_file_says_the_same(case: Case) -> None:
    signature_cases.check_binary(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_blobs_are_what_the_module_holds(case: Case) -> None:
    signature_cases.check_blobs(case)


@pytest.mark.parametrize("case", [case for case in CASES if case.type != "Python"], ids=str)
def test_macs_are_what_torch_counts(case: Case) -> None:
    signature_cases.check_macs(case)


@pytest.mark.parametrize("type_", sorted(signature_cases.records()))
def test_numbers_of_bottoms(type_: str) -> None:
    signature_cases.check_bottoms(type_)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_the_rule_takes_runs(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert list(signature_cases.check_refusals(case)) == []


@pytest.mark.parametrize("type_", sorted(("ForkLoss", *SIGNATURES["ForkLoss"].aliases)))
def test_losses_of_forks_are_dropped_or_refused(type_: str) -> None:
    from caffe_port.errors import SpecError

    assert has(type_, Trait.LABELS)
    assert not has(type_, Trait.LOSS)
    message = Case(type_, "", ((2, 3), (2,))).message
    cls = class_of(message)
    assert cls is not None
    with pytest.raises(SpecError, match="a loss or metric of a fork"):
        cls.build(message, [(2, 3), (2,)])


# -- queries ------------------------------------------------------------------------------------------------------


def test_traits_are_sets_of_traits() -> None:
    assert has("ReLU", Trait.ELEMENTWISE)
    assert has("ReLU", Trait.KEEPS_CHANNELS)
    assert has("ReLU", Trait.KEEPS_PLACES)
    assert has("Scale", Trait.ELEMENTWISE)
    assert not has("Scale", Trait.ACTIVATION)
    assert has("Pooling", Trait.KEEPS_CHANNELS)
    assert not has("Pooling", Trait.ELEMENTWISE)
    assert not has("Nobodys", Trait.ELEMENTWISE)
    assert {"Data", "Input", "OtherData"} < types_with(Trait.SOURCE)
    assert has_weights("DepthwiseConv")
    assert has_weights("FcRistretto")
    assert not has_weights("Pooling")
    assert not has_weights("Scale")


def test_what_bottoms_hold() -> None:
    assert holds("SoftmaxWithLoss", 1) is Holds.LABELS
    assert holds("SoftmaxWithLoss", 0) is holds("ReLU", 5) is holds("Nobodys", 0) is Holds.NUMBERS


def test_labels_by_record_or_by_name() -> None:
    assert compares_labels("SegAccuracy")
    assert compares_labels("BoxAnnotatorOHEM")
    assert compares_labels("NobodysLoss")
    assert not compares_labels("Nobodys")


ELEMENTS = sorted(name for name in types_with(Trait.ELEMENTWISE) if signature_of(name).bottoms[0] == 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("type_", ELEMENTS)
def test_elementwise_means_that_only_a_number_at_the_same_place_counts(type_: str) -> None:
    case = next(case for case in CASES if case.type == type_ and len(case.bottoms) == 1 and len(case.bottoms[0]) == 4)
    module = signature_cases.run(case)[0]
    torch.manual_seed(0)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data.uniform_(0.1, 1)
    x = torch.rand(case.bottoms[0])
    changed = x.clone()
    changed[1, 2, 3, 4] = 9
    with torch.no_grad():
        differ = (module(x) != module(changed)).nonzero().tolist()
    assert differ in ([[1, 2, 3, 4]], []), differ


@pytest.mark.parametrize("type_", sorted(types_with(Trait.NO_NUMBERS) - types_with(Trait.SINK)))
def test_no_numbers_means_that_none_is_changed(type_: str) -> None:
    case = next(case for case in CASES if case.type == type_)
    module = signature_cases.run(case)[0]
    bottoms = [torch.rand(shape) for shape in case.bottoms]
    made = module(*bottoms)
    top = made[0] if isinstance(made, tuple) else made
    assert torch.equal(top.reshape(-1), bottoms[0].reshape(-1))


# -- plugins ------------------------------------------------------------------------------------------------------


def test_a_plugin_says_its_record_in_its_class() -> None:
    with registries.forgotten():

        class Own(Layer):
            param, blobs, aliases = "relu_param", ("gain",), ("Ours",)
            labels, per_bottom = True, True

        made = SIGNATURES["Own"]
        assert SIGNATURES["Ours"] is made is Own.signature
        assert made == Signature(
            "Own",
            None,
            aliases=("Ours",),
            messages=("relu_param",),
            bottoms=(0, ANY),
            blobs=("gain",),
            traits=Trait.LABELS | Trait.PER_BOTTOM,
        )
        message = prototxt.parse('type: "Own" relu_param { negative_slope: 3 }', "LayerParameter")
        assert Own.own_message(message).negative_slope == 3
    assert "Own" not in SIGNATURES


def test_a_plugin_takes_the_place_of_a_type() -> None:
    before = REGISTRY["ReLU"]
    with registries.forgotten():

        class ReLU(Layer):
            blobs = ("slope",)

        assert REGISTRY["ReLU"] is ReLU
        assert SIGNATURES["ReLU"].blobs == ("slope",)
        assert SIGNATURES["ReLU"].tops is None, "nothing is known of what it makes"
    assert REGISTRY["ReLU"] is before
    assert SIGNATURES["ReLU"] is before.signature


def test_a_subclass_inherits_what_its_base_receives_and_refuses() -> None:
    from caffe_port.errors import SpecError

    with registries.forgotten():
        base = REGISTRY["Pooling"]
        own = type("MyPooling", (base,), {})
        assert issubclass(own, Layer)
        assert own.signature.tops is None
        text = 'type: "MyPooling" top: "y" pooling_param {{ kernel_size: 2 {} }}'
        message = prototxt.parse(text.format(""), "LayerParameter")
        assert own.own_message(message) is message
        assert own.build(message, [(2, 3, 8, 6)])(torch.rand(2, 3, 8, 6)).shape == (2, 3, 7, 5)
        with pytest.raises(SpecError, match="pad 2 must be less than the kernel"):
            own.build(prototxt.parse(text.format("pad: 2"), "LayerParameter"), [(2, 3, 8, 6)])


def test_what_is_not_registered_leaves_no_record() -> None:
    type("Quiet", (Layer,), {}, register=False)
    assert "Quiet" not in SIGNATURES
    assert "Quiet" not in REGISTRY


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SIGNATURES["ReLU"].type = "x"  # type: ignore[misc]


def test_records_need_no_torch() -> None:
    script = (
        "import sys, caffe_port.signatures.shapes, caffe_port.definition.input_shapes;"
        "import caffe_port.definition.deploy_view;"
        "import caffe_port.inspection.net_table;"
        "sys.exit('torch' in sys.modules or any(name.startswith('caffe_port.layers') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
