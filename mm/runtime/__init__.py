"""The machinery that composed parts run on, in floors: nn and text; data and devices; models; generation; training; runs.
Each imports only floors below it and `mm.core`; no part is known here."""
