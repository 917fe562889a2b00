"""From files to batches: manifests, audio, text, corpora and samplers.

Authors
 * The blsp_plugin team 2026
"""
