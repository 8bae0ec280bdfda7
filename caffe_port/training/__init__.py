"""Caffe's training loop and solvers, and the folders of training runs."""
