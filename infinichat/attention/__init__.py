"""Infini-attention on plain tensors (arXiv 2404.07143): exact attention over a window, a memory for the rest.

``reference.py`` and ``bank_reference.py`` are the definition, one token at a time; ``window.py``,
``memory.py``, ``bank.py`` and ``infini.py`` are the fast paths that are tested against it. Nothing here knows
what a model or a cache is.
"""
