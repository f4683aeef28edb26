"""Target ``cuda``: the fused graph on an NVIDIA GPU, replayed as CUDA graphs."""
