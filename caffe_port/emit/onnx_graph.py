"""What is done to an ONNX graph after the exporter has made it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any


def finish(graph: Any) -> None:
    """Names the nodes and values of the layers after them, and removes what only this machine knows.

    A ``Top`` node (:mod:`caffe_port.emit.operators`) says that its input is the top of a layer: the node that computes
    it and, if it is free, the value get the layer's name. Outputs of the graph keep their own names.
    """
    values = {value.name for value in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    nodes: set[str] = set()
    outputs = set(graph.outputs)
    _leave(graph, values)
    for node in list(graph):
        node.metadata_props.clear()  # stack traces with paths of this machine
        if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
            _zero(node)
        if node.domain != "caffe_port":
            continue
        name = node.attributes["name"].as_string()  # may be empty: then the value keeps its own
        value, marked = node.inputs[0], node.outputs[0]
        producer = value.producer()
        taken = producer is None or producer.name in nodes or name in nodes
        if taken or (marked in outputs and value in outputs):
            node.domain, node.op_type, node.name = "", "Identity", f"{name}_again" if name in nodes else name
            node.attributes.clear()
            nodes.add(node.name)
            if name and marked not in outputs and name not in values:
                marked.name = name
                values.add(name)
            continue
        producer.name = name
        nodes.add(name)
        if marked in outputs:
            value.name, marked.name = marked.name, f"{marked.name}_marked"
            value.shape = value.shape or marked.shape
            value.type = value.type or marked.type
            for i, output in enumerate(graph.outputs):
                if output is marked:
                    graph.outputs[i] = value
            outputs = set(graph.outputs)
        elif name and name not in values and value not in outputs:
            value.name = name
            values.add(name)
        marked.replace_all_uses_with(value)
        graph.remove(node, safe=True)


def _leave(graph: Any, held: set[str]) -> None:
    """Gives the values that the exporter named like a layer other names, so that no two values get one name."""
    wanted = {node.attributes["name"].as_string() for node in graph if node.domain == "caffe_port"}
    inner = [value for node in graph for value in node.outputs if value.name not in held]
    names = {value.name for value in inner}
    for value in inner:
        if value.name in wanted:
            value.name = distinct([value.name], held | names | wanted)[0]
            names.add(value.name)


def distinct(names: Iterable[str], taken: Collection[str]) -> list[str]:
    """Names that differ from each other and from those that are taken, and of which none is empty: ONNX has one space
    of names for all values, and "" there is a value that is left out."""
    found: list[str] = []
    for name in names:
        tries = (name, *(f"{name or 'blob'}_{k}" for k in range(1, len(taken) + len(found) + 2)))
        found.append(next(one for one in tries if one and one not in taken and one not in found))
    return found


def _zero(node: Any) -> None:
    """Writes out the value that ONNX assumes where there is none, as MNN does not."""
    import numpy as np
    import onnx_ir as ir

    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1, np.float32)))
