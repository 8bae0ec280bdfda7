"""Caffe's training loop, its solvers, and the folders that runs leave behind."""
