"""How a memory learns to recall: generated conversations, cached hidden states, and the training stages.

Nothing here is imported by the chat itself. Every stage takes a model, a folder of data and a seed, and can
be
stopped and taken up again at any step with the same result.
"""
