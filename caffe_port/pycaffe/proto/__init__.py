"""Caffe's protobuf messages, where scripts look for them: ``from caffe.proto import caffe_pb2``."""
