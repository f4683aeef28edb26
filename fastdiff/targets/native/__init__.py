"""The native CPU target: modules as files of native nodes with packed weights, run by ``csrc/``."""
