"""The stages of `mm run`, one folder each, and training.py, the class of all training stages.

They import contracts, runtime, core and evaluations.
"""
