"""Every built-in part, a folder for each kind and in it one for each part; beside them evaluations, which several
parts share. A part imports contracts, runtime and core, and only those other parts that it builds on."""
