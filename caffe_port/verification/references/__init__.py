"""What a net is compared with: Caffe, OpenCV, NumPy formulas, stored traces."""
