"""A web page to talk with a trained adapter: ``blsp web``.

Nothing heavy is imported here; `blsp_plugin.webpage.command` starts the page.

Authors
 * The blsp_plugin team 2026
"""
