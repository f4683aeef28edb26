"""The CUDA C++ kernels of ``csrc/cuda/``, on torch tensors: ``<op>.py`` launches ``<op>.cu``.

``loader.py`` brings a kernel into the process and launches it, ``compiler.py`` compiles what the package
has no binary of. Nothing here is imported unless a GPU is used.
"""
