"""Plausible wrong answers to the exercises, a file for each file of checkers.

``WRONG`` has for each checker at least three answers that a reader might well give, and of each
the words of the hint that fits it.
"""
