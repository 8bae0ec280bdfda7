"""Finds out where a port leaves the Caffe net, and why."""
