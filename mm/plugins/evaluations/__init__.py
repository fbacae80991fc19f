"""Measuring models on held-out rows and skills, and the reports and pictures of it: shared by the command and the stage `eval`.
Imports contracts, runtime, core and the corpus of skills."""
