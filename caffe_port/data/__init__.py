"""Batches of images and records, and the preprocessing that all parts of caffe-port share."""
