"""Ids in, ids out: what runs a model. Knows no chat format, no disk and no screen.

Importing this package imports nothing heavy; ``scripted.py`` stays free of torch for good.
"""
