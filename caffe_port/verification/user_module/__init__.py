"""A port that somebody else wrote, compared with Caffe's net."""
