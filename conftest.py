"""Registers the plugin that gives every kata's tests their `impl` fixture."""

pytest_plugins = ["dojo.pytest_plugin.plugin"]
