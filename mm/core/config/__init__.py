"""From layers of values to a frozen Run: the sections of options, their merging, and what is chosen for the user. Imports
`mm.core` and no torch."""
