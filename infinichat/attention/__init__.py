"""Infini-attention on plain tensors (arXiv 2404.07143): exact attention over a window, a memory for the rest.

``reference.py`` is the definition, one token at a time; ``window.py``, ``memory.py`` and ``infini.py`` are
the fast paths that are tested against it. Nothing here knows what a model or a cache is.
"""
