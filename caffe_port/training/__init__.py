"""Retraining with Caffe's own solver semantics, and the question whether the reported accuracy is met.

``train`` is the loop; ``setup`` what is ready before it; ``solver`` and ``optimizers`` are Caffe's; ``data``,
``sources`` and ``batches`` feed it; ``runfolder`` keeps what it wrote. ``evaluate`` and ``reproduce`` measure a net
against ``registry``, which holds what was reported.
"""
