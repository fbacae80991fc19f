"""Measuring models on held-out rows and skills, with reports, tables and plots: shared by the command and the stage `eval`.

Imports contracts, runtime, core and the skills corpus.
"""
