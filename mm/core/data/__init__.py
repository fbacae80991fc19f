"""Rows to tokens: tokenizer, typed rows, the token cache and the order in which rows are read."""
