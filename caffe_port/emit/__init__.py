"""A Net as files: model.py with its weights, ONNX, pt2, or Caffe's own again, checked before they appear."""
