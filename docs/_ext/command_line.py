"""The directive ``command-line``: the help of every subcommand of an installed click command.

The command is found by its entry point, so no page names the module that it is in.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class CommandLine(SphinxDirective):
    """Render a section for each subcommand: its name, and what ``--help`` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        program = self.arguments[0]
        (entry,) = entry_points(group="console_scripts", name=program)
        group = entry.load()
        context = click.Context(group, info_name=program, help_option_names=group.context_settings["help_option_names"])
        return [self._section(program, name, group.get_command(context, name), context) for name in group.commands]

    def _section(self, program: str, name: str, command: Any, context: click.Context) -> nodes.section:
        own = click.Context(command, info_name=name, parent=context, terminal_width=78, max_content_width=78)
        section = nodes.section(ids=[nodes.make_id(f"{program}-{name}")], names=[f"{program} {name}"])
        section += nodes.title("", "", nodes.literal(text=f"{program} {name}"))
        section += nodes.literal_block(text=command.get_help(own), language="text")
        return section


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
