"""One layer computed with OpenCV's own importer and layers (cv2.dnn): golden values from independent code."""

import cv2
import numpy as np


def opencv(text, *inputs, tops=1):
    """The tops of the last layer of ``text``, whose bottoms are in0, in1, ..."""
    head = "".join(
        f'layer {{ name: "in{i}" type: "Input" top: "in{i}" input_param {{ shape {{'
        + "".join(f" dim: {n}" for n in x.shape)
        + " } } }\n"
        for i, x in enumerate(inputs)
    )
    net = cv2.dnn.readNetFromCaffe(np.frombuffer(f'name: "n"\n{head}{text}'.encode(), np.uint8))
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    for i, x in enumerate(inputs):
        net.setInput(np.ascontiguousarray(x, np.float32), f"in{i}")
    made = net.forwardAndRetrieve([net.getLayerNames()[-1]])[0]
    return made[0] if tops == 1 else made
