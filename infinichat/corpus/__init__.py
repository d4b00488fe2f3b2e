"""Conversations made to order: generated facts, questions and corrections between real filler text.

Training and measuring both draw from here, each from its own side: names, values, attributes, phrasings and
filler of the two never overlap. Pure Python, everything from the ``random.Random`` that is passed in.
"""
