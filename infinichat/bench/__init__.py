"""Measuring speed and memory, against others that run the same weights. Importing this brings nothing
heavy."""
