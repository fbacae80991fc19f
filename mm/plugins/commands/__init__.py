"""The commands of `mm`, one folder each. Modules beside the folders are shared by several commands.

Commands are the only plugins that import click, and they may import everything below the command line.
"""
