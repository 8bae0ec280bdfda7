"""Caffe's protobuf messages, where scripts look for them: ``caffe.proto.caffe_pb2``."""

from caffe_port.pycaffe.proto import caffe_pb2

__all__ = ["caffe_pb2"]
