"""``infinichat train paper``: the comparison of arXiv 2404.07143 (tables 1 to 3), at any size.

Six models that differ in nothing but how they see what is further back than a segment, trained from scratch
on the same tokens in the same order (``variants``, ``books``), measured on whole held-out books and on the
passkey task before and after fine-tuning (``measure``), and put into the paper's table (``report``).
"""
