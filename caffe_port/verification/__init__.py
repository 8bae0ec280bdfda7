"""The proof that nothing changed on the way: a net beside a reference, layer by layer.

``verify`` runs both in step (``runner``) and compares them (``comparison``); a reference is OpenCV, Caffe's own Python
interface, the float64 formulas of ``numpy_reference``, or a recorded ``trace``. ``candidate`` does the same for
somebody's own port, ``diagnose`` says what a layer that differs computes instead, and ``report``, ``html`` and
``junit`` tell it.
"""
