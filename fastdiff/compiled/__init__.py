"""``fastdiff.compile``: diffusers pipelines whose models run on fastdiff.

``pipeline.py`` takes a pipeline apart and puts it together again, ``reasons.py`` says which components stay
with PyTorch, ``specs.py`` makes modules of the others, ``engines.py`` builds and keeps their engines, and
``stand_ins.py`` has what takes their places. docs/compile.md is for users.
"""
