"""Five parts for mm. Each folder is one part: `__init__.py` declares it, the module beside it implements it."""
