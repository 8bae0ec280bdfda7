"""Caffe's files of any age, read and written as messages and arrays."""
