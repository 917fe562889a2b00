"""A trained adapter as a service: OpenAI's chat completions with speech in.

Authors
 * The blsp_plugin team 2026
"""
