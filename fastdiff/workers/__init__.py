"""Processes that make pictures, one per device, and the queue that feeds them.

::

    pool.py     the calling process: pictures of a call as jobs, results in order
    process.py  one process seen from there: start, ask, end
    wire.py     the messages between them: JSON and raw arrays
    __main__.py the process itself: ``python -m fastdiff.workers``
"""
