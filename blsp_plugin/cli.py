"""The ``blsp`` command.

Authors
 * The blsp_plugin team 2026
"""
