"""Built-in parts by kind: one folder a kind, one folder in it a part.

Plain modules beside the folders are shared by the parts of the kind.
"""
