"""Training algorithms, a folder each; modules beside them are shared by several. They import contracts, runtime, core and
`mm.plugins.rollouts`."""
