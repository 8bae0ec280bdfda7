"""The references that a net is compared with: Caffe, OpenCV, NumPy formulas, or a stored trace."""
