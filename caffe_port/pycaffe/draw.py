"""caffe.draw: a net as a graph, with pydot and Graphviz. Source: python/caffe/draw.py of Caffe."""

from __future__ import annotations

import os
from typing import Any

from caffe_port.errors import DependencyError
from caffe_port.pycaffe.proto import caffe_pb2

LAYER_STYLE_DEFAULT = {"shape": "record", "fillcolor": "#6495ED", "style": "filled"}
NEURON_LAYER_STYLE = {"shape": "record", "fillcolor": "#90EE90", "style": "filled"}
BLOB_STYLE = {"shape": "octagon", "fillcolor": "#E0E0E0", "style": "filled"}
_COLORS = {"Convolution": "#FF5050", "Deconvolution": "#FF5050", "Pooling": "#FF9900", "InnerProduct": "#CC33FF"}
_LEARNING = ("Convolution", "Deconvolution", "InnerProduct")


def get_pooling_types_dict() -> dict[int, str]:
    """The names of the pooling methods by their numbers."""
    return {value: name for name, value in caffe_pb2.PoolingParameter.PoolMethod.items()}


def get_edge_label(layer: Any) -> str:
    """The label of the edges to a layer's tops: the batch size or the number of outputs, where it says one."""
    if layer.type == "Data":
        return f"Batch {layer.data_param.batch_size}"
    if layer.type in ("Convolution", "Deconvolution"):
        return str(layer.convolution_param.num_output)
    return str(layer.inner_product_param.num_output) if layer.type == "InnerProduct" else '""'


def get_layer_lr_mult(layer: Any) -> tuple[float, float]:
    """The ``lr_mult`` of the weight and of the bias.

    Raises:
        ValueError: the layer is no Convolution, Deconvolution or InnerProduct, or has more than two ``param``.
    """
    if layer.type not in _LEARNING:
        raise ValueError(f"{layer.type} layers do not have a learning rate multiplier")
    if len(layer.param) > 2:
        raise ValueError("Could not parse the learning rate multiplier")
    weight, bias, *_ = [*(param.lr_mult for param in layer.param), 1.0, 1.0]
    return weight, bias


def get_layer_label(layer: Any, rankdir: str, display_lrm: bool = False) -> str:
    """The label of a layer: name, type, window and, with ``display_lrm``, learning rate multipliers."""
    kind = layer.type
    if kind == "Pooling":
        kind += f" {get_pooling_types_dict()[layer.pooling_param.pool]}"
    separator = " " if rankdir in ("TB", "BT") else r"\n"
    words = [layer.name, f"({kind})"]
    if layer.type in ("Convolution", "Deconvolution", "Pooling"):
        if layer.type == "Pooling":
            window = layer.pooling_param.kernel_size, layer.pooling_param.stride, layer.pooling_param.pad
        else:
            p = layer.convolution_param
            window = ((*p.kernel_size, 1)[0], (*p.stride, 1)[0], (*p.pad, 0)[0])
        words += [f"kernel size: {window[0]}", f"stride: {window[1]}", f"pad: {window[2]}"]
    if display_lrm and layer.type in _LEARNING and any(multipliers := get_layer_lr_mult(layer)):
        words.append("lr mult: {:.1f}, {:.1f}".format(*multipliers))
    return f'"{separator.join(words)}"'


def choose_color_by_layertype(layertype: str) -> str:
    """The color of layers of a type."""
    return _COLORS.get(layertype, LAYER_STYLE_DEFAULT["fillcolor"])


def get_pydot_graph(
    caffe_net: Any, rankdir: str, label_edges: bool = True, phase: int | None = None, display_lrm: bool = False
) -> Any:
    """The graph of a NetParameter.

    Args:
        rankdir: the direction, ``LR``, ``TB`` or ``BT``.
        label_edges: with :func:`get_edge_label`.
        phase: only the layers of this phase; None: all.
        display_lrm: with learning rate multipliers.

    Returns:
        A pydot.Dot.

    Raises:
        DependencyError: pydot is not installed.
        ValueError: with a phase, a layer has both ``include`` and ``exclude``.
    """
    pydot = _pydot()
    graph = pydot.Dot(caffe_net.name or "Net", graph_type="digraph", rankdir=rankdir)
    nodes: dict[str, Any] = {}
    edges = []
    for layer in caffe_net.layer:
        if phase is not None and not _included(layer, phase):
            continue
        name = f"{layer.name}_{layer.type}"
        in_place = len(layer.bottom) == len(layer.top) == 1 and layer.bottom[0] == layer.top[0]
        style = NEURON_LAYER_STYLE if in_place else LAYER_STYLE_DEFAULT
        if not in_place:
            style = {**style, "fillcolor": choose_color_by_layertype(layer.type)}
        nodes[name] = pydot.Node(get_layer_label(layer, rankdir, display_lrm), **style)
        for blob in layer.bottom:
            nodes[f"{blob}_blob"] = pydot.Node(blob, **BLOB_STYLE)
            edges.append((f"{blob}_blob", name, '""'))
        for blob in layer.top:
            nodes[f"{blob}_blob"] = pydot.Node(blob)
            edges.append((name, f"{blob}_blob", get_edge_label(layer) if label_edges else '""'))
    for node in nodes.values():
        graph.add_node(node)
    for source, target, label in edges:
        graph.add_edge(pydot.Edge(nodes[source], nodes[target], label=label))
    return graph


def _included(layer: Any, phase: int) -> bool:
    if layer.include and layer.exclude:
        raise ValueError(f"layer {layer.name} has both include and exclude specified.")
    if layer.include:
        return any(rule.phase == phase for rule in layer.include)
    return all(rule.phase != phase for rule in layer.exclude)


def draw_net(
    caffe_net: Any, rankdir: str, ext: str = "png", phase: int | None = None, display_lrm: bool = False
) -> bytes:
    """A NetParameter as a picture in a format of Graphviz, or with ``raw`` as the text that Graphviz takes.

    Raises:
        DependencyError: pydot or Graphviz is not installed.
    """
    graph = get_pydot_graph(caffe_net, rankdir, phase=phase, display_lrm=display_lrm)
    if ext == "raw":
        return str(graph.to_string()).encode()
    try:
        picture: bytes = graph.create(format=ext)
    except FileNotFoundError:
        raise DependencyError(
            "drawing a net requires Graphviz's program dot", hint="Install Graphviz, or write a file NAME.raw for it."
        ) from None
    return picture


def draw_net_to_file(
    caffe_net: Any,
    filename: str | os.PathLike[str],
    rankdir: str = "LR",
    phase: int | None = None,
    display_lrm: bool = False,
) -> None:
    """Writes :func:`draw_net` to a file, whose extension says the format."""
    picture = draw_net(caffe_net, rankdir, os.fspath(filename).rpartition(".")[2], phase, display_lrm)
    with open(filename, "wb") as file:
        file.write(picture)


def _pydot() -> Any:
    try:
        import pydot
    except ImportError:
        raise DependencyError("drawing a net requires pydot", hint="pip install 'caffe-port[draw]'") from None
    return pydot
