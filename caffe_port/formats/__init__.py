"""Caffe's files of any age as messages and arrays."""
