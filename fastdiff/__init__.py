"""fastdiff: an inference runtime for diffusion models."""
