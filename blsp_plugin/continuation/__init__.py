"""Stage 1: transcripts become continuations, written by the LLM itself.

Authors
 * The blsp_plugin team 2026
"""
