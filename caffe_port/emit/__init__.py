"""A Net as files: model.py and weights, ONNX, pt2, back to Caffe; and the check of what was written."""
