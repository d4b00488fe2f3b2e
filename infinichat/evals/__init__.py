"""Measures of what a checkpoint remembers: real streamed conversations, greedy answers, exact match.

``run.py`` is what ``infinichat eval`` calls; every measure is one file with ``measure(bench, options)``.
"""
