"""The commands of `mm`, a folder each; modules beside them are shared by several. The only plugins that import click; they may
import everything below the command line."""
