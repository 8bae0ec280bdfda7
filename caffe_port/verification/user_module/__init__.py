"""Compares a hand-written PyTorch port with the Caffe net."""
