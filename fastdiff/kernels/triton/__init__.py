"""Kernels in Triton, one file per op, on torch tensors.

``<op>.py`` holds the kernel, the function that checks its arguments and launches it, ``configs``, the tilings
worth measuring for a shape, and ``builds``, the specialisations that are compiled ahead of time.
``launch.py`` is what they share, ``aot.py`` compiles without a GPU, ``interpreter.py`` runs a kernel on CPU
tensors.
"""
