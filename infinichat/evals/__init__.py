"""Measures of what a checkpoint remembers: real streamed conversations, greedy answers, exact match.

``infinichat eval NAME`` loads a checkpoint and calls ``measure(bench, options)`` of that measure's file;
``card.py`` is everything that a checkpoint's card says.
"""
