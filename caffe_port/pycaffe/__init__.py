"""pycaffe's API on PyTorch."""
