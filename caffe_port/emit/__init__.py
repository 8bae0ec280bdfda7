"""A Net written to files: model.py with its weights, ONNX, pt2 or Caffe's own formats, checked before they appear."""
