"""The endpoints, one module per dialect or subject: their bodies as pydantic models, and nothing that another dialect needs.
Imports the modules of `runtime.serving` beside this folder, and FastAPI."""
